"""The envelope of a tick batch: its headers, and what consumers compare in them.

A batch holds ticks of one symbol in the order in which they arrived, and batches of a symbol follow each other in that
order. A batch without rows is a heartbeat: its payload is empty, and its headers prove that a quiet time was quiet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import polars as pl

from market_pipeline.bus.envelope import new_batch_id, now_ms
from market_pipeline.bus.header_fields import (
    MAX_BATCH_ID,
    Fields,
    read_number,
    read_stages,
    read_text,
    read_time,
    stage_fields,
    text_field,
    unreadable,
)
from market_pipeline.errors import UnreadableBatch
from market_pipeline.market.ticks import STORED_TICK_SCHEMA
from market_pipeline.market.timeframes import to_ms
from market_pipeline.tick_columns import TickColumns
from market_pipeline.tick_payload import UNREADABLE, decode_columns

__all__ = [
    "LATE",
    "LOSS_MARGIN",
    "REPLAYED",
    "TICK_SCHEMA_VERSION",
    "VENDOR_STREAM",
    "EncodedTicks",
    "TickHeaders",
    "decode_tick_batch",
    "decode_tick_columns",
    "new_batch_id",
    "usual_correlation_id",
]

# 1: Arrow IPC. 2: the layout of tick_payload; Source and Correlation-Id are left out where they are the usual ones.
TICK_SCHEMA_VERSION = 2
VENDOR_STREAM = "vendor_stream"
# Events come a little late and out of order. A session counts as proven up to so long before its last sign of life, so
# every live bar waits for this after its end: when it was a second it was most of the latency. What comes later than
# that while the session goes on is not lost, it reissues its bar as a revision; so this need only cover the usual.
LATE = timedelta(milliseconds=250)
# Once a session has ended, what is later than that never comes: so a loss begins earlier than the proof ended, and the
# bars between are published again as not complete.
LOSS_MARGIN = timedelta(seconds=1)

# Hundreds of batches a second say the same of these: only what is unusual is sent.
_SOURCE, _CORRELATION_ID = "Source", "Correlation-Id"
# Ours among a letter's own headers, so that it does not stay with a message that goes to dead letters once more.
REPLAYED = "Dead-Letter-Replayed"
_OPTIONAL_NUMBERS = {"number": ("No", 0), "covers": ("Covers", 1)}  # header, and the value that is not sent
_OPTIONAL_TIMES = {"first_ts": "First-Ts", "last_ts": "Last-Ts", "lost_from": "Lost-From"}
_FIELDS = Fields(
    TICK_SCHEMA_VERSION,
    "a batch of ticks",
    texts={"symbol": "Symbol", "collector_id": "Collector-Id", "session_id": "Session-Id"},
    numbers={
        "batch_id": ("Batch-Id", 1, MAX_BATCH_ID),
        "epoch": ("Epoch", 0, 2**63 - 1),
        "rows": ("Rows", 0, 2**32 - 1),
    },
    times={"session_started": "Session-Started", "alive_at": "Alive-At"},
)


@dataclass(frozen=True, slots=True)
class TickHeaders:
    """Describe a tick batch without its payload. Times are UTC, to the millisecond.

    batch_id: random, 1 … 2^63 − 1; the same in every row: a redelivery brings the same one.
    correlation_id: what ties the batch to other records; where nobody gave one, the batch id in hexadecimal digits.
    symbol: the key. rows: 0 for a heartbeat. first_ts, last_ts: earliest and latest vendor time; None without rows.
    collector_id, epoch: who published, and the epoch of its lease: of two collectors the higher epoch is right.
    session_id, session_started: the uninterrupted, overflow-free session of this symbol that the rows came in. Where
        nothing is proven (the subscription is not acknowledged yet), session_started equals alive_at.
    alive_at: up to where the session showed signs of life, all of whose events are in this batch or an earlier one: the
        time of an event, or of a ping that was answered. An event that came late may still follow (see `proven_until`).
    lost_from: events of this symbol in [lost_from, session_started) may be lost; None where nothing went before.
    number: the batch's number of this symbol in this epoch: 1, 2, 3 …, heartbeats included, without a hole unless a
        batch was lost; 0 where the producer does not count. One that is published again keeps it.
    covers: the numbers up to `number` that the batch stands for, because it was published instead of those.
    stages: epoch ms, `received` (the first row by the collector) and `published`.
    replayed: it was a dead letter and is sent again, long after its time: a store takes it whatever its epoch, and
        nothing of what it says is news of its symbol.
    """

    batch_id: int
    correlation_id: str
    symbol: str
    collector_id: str
    epoch: int
    rows: int
    session_id: str
    session_started: datetime
    alive_at: datetime
    first_ts: datetime | None = None
    last_ts: datetime | None = None
    lost_from: datetime | None = None
    number: int = 0
    covers: int = 1
    source: str = VENDOR_STREAM
    stages: dict[str, int] = field(default_factory=dict)
    replayed: bool = False

    @property
    def proven_until(self) -> datetime:
        """Up to where everything of the session has come, late events too: a window that ends by then is whole.

        The next session may take the end of it back: what it names as `lost_from` lies up to LOSS_MARGIN before
        `alive_at`, and after a silence up to so much before the last event, for a connection that answers pings while
        its feed stands still proves too much.
        """
        return self.alive_at - LATE

    @property
    def heartbeat(self) -> bool:
        """Whether the batch has no rows."""
        return self.rows == 0

    def with_stage(self, name: str, at_ms: int | None = None) -> TickHeaders:
        """Return the headers with one more stage, by default passed now."""
        return replace(self, stages={**self.stages, name: now_ms() if at_ms is None else at_ms})

    def to_nats(self) -> dict[str, str]:
        """Return the NATS headers: printable ASCII; what is None is left out."""
        headers = _FIELDS.write(self)
        for name, (header, unsent) in _OPTIONAL_NUMBERS.items():
            if (number := getattr(self, name)) != unsent:
                headers[header] = str(number)
        for name, header in _OPTIONAL_TIMES.items():
            if (value := getattr(self, name)) is not None:
                headers[header] = str(to_ms(value))
        if self.source != VENDOR_STREAM:
            headers[_SOURCE] = text_field(self.source)
        if self.correlation_id != usual_correlation_id(self.batch_id):
            headers[_CORRELATION_ID] = text_field(self.correlation_id)
        if self.replayed:
            headers[REPLAYED] = "1"
        return headers | stage_fields(self.stages)

    @classmethod
    def from_nats(cls, headers: Mapping[str, str] | None) -> TickHeaders:
        """Read the NATS headers of a message; headers of others are passed over.

        Raises:
            UnreadableBatch: a header is missing or wrong (reason `unreadable_envelope`), or the schema version is
                not ours (reason `schema_version`); the message names header and value.
        """
        given = headers or {}
        values = _FIELDS.read(given)
        for name, (header, unsent) in _OPTIONAL_NUMBERS.items():
            if header in given:
                values[name] = read_number(given, header, unsent, 2**63 - 1)
        for name, header in _OPTIONAL_TIMES.items():
            if header in given:
                values[name] = read_time(given, header)
        values["source"] = read_text(given, _SOURCE, required=False) or VENDOR_STREAM
        values["correlation_id"] = read_text(given, _CORRELATION_ID, required=False) or usual_correlation_id(
            values["batch_id"]
        )
        first, last = values.get("first_ts"), values.get("last_ts")
        if values["rows"] and (first is None or last is None or last < first):
            raise unreadable(f"Rows is {values['rows']}, but First-Ts and Last-Ts are missing or out of order")
        return cls(**values, stages=read_stages(given), replayed=REPLAYED in given)


def usual_correlation_id(batch_id: int) -> str:
    """Return the correlation id of a batch that is tied to nothing but itself."""
    return f"{batch_id:x}"


@dataclass(frozen=True, slots=True)
class EncodedTicks:
    """Hold a tick batch that is ready to be published; the payload of a heartbeat is empty."""

    headers: TickHeaders
    payload: bytes


def decode_tick_batch(payload: bytes, headers: TickHeaders) -> pl.DataFrame:
    """Decode the payload of a tick batch to STORED_TICK_SCHEMA and prove that it is the one of these headers.

    Raises:
        UnreadableBatch: reason `unreadable_payload`: damaged, or of another symbol or batch, or not as many rows.
    """
    columns = decode_tick_columns(payload, headers)
    return pl.DataFrame(schema=STORED_TICK_SCHEMA) if columns is None else columns.frame()


def decode_tick_columns(payload: bytes, headers: TickHeaders) -> TickColumns | None:
    """Decode as `decode_tick_batch` does, but to columns; None for a heartbeat.

    Raises:
        UnreadableBatch: likewise.
    """
    if headers.heartbeat and not payload:
        return None
    columns = decode_columns(payload)
    for name in ("rows", "symbol", "batch_id"):
        said, found = getattr(headers, name), getattr(columns, name)
        if said != found:
            raise UnreadableBatch(f"the headers say {name} {said}, the payload {found}", reason=UNREADABLE)
    return columns

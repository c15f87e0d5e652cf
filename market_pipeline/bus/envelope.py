"""The envelope of a batch: its headers, and how a frame of bars is cut into batches of a bounded size."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import ceil

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_pipeline import payload as arrow
from market_pipeline.bus.header_fields import MAX_BATCH_ID, BatchFields, read_stages, stage_fields
from market_pipeline.errors import InvalidBars, PayloadTooLarge, UnreadableBatch
from market_pipeline.market.bars import BAR_SCHEMA, TS
from market_pipeline.market.digest import DIGEST_COLUMNS, row_digests, value_digest
from market_pipeline.market.timeframes import to_ms

SCHEMA_VERSION = 1
MAX_BYTES = 512 * 1024
# lz4 over the price series of a forex pair; only the first cut of a frame is guessed by it.
GUESSED_BYTES_A_ROW = 35
# Aim a little below the limit: neighbouring slices of a series differ by a few per cent.
_MARGIN = 0.96

_SERIES = ("symbol", "timeframe", "source")
_FIELDS = BatchFields(
    SCHEMA_VERSION,
    "a batch of bars",
    {"correlation_id": "Correlation-Id", "source": "Source", "symbol": "Symbol", "timeframe": "Timeframe"},
)


@dataclass(frozen=True, slots=True)
class BatchHeaders:
    """Describe a batch without its payload.

    batch_id: random, 1 … 2^63 − 1; the same in every row and in the ledger. All batches of a live flush share one.
    correlation_id: follows one piece of work through every log line.
    source, symbol (the key), timeframe: of every row.
    start_ts, end_ts: ts of the first and the last row, UTC, both inclusive.
    rows, digest: count and `market.digest.value_digest` of the rows.
    run_id, vendor_request_id: empty where there is none.
    stages: epoch ms at which the batch passed each stage.
    """

    batch_id: int
    correlation_id: str
    source: str
    symbol: str
    timeframe: str
    rows: int
    digest: int
    start_ts: datetime
    end_ts: datetime
    run_id: str = ""
    vendor_request_id: str = ""
    stages: dict[str, int] = field(default_factory=dict)

    def with_stage(self, name: str, at_ms: int | None = None) -> BatchHeaders:
        """Return the headers with one more stage, by default passed now."""
        return replace(self, stages={**self.stages, name: now_ms() if at_ms is None else at_ms})

    def to_nats(self) -> dict[str, str]:
        """Return the NATS headers: printable ASCII; empty texts are left out."""
        return _FIELDS.write(self) | stage_fields(self.stages)

    @classmethod
    def from_nats(cls, headers: Mapping[str, str] | None) -> BatchHeaders:
        """Read the NATS headers of a message; headers of others are passed over.

        Raises:
            UnreadableBatch: a header is missing or wrong (reason `unreadable_envelope`), or the schema version is
                not ours (reason `schema_version`); the message names header and value.
        """
        given = headers or {}
        return cls(**_FIELDS.read(given), stages=read_stages(given))


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Hold a batch that is ready to be published: `frame_slice` has the rows (BAR_SCHEMA) that `payload` encodes."""

    headers: BatchHeaders
    payload: bytes
    frame_slice: pl.DataFrame


def encode_batches(
    frame: pl.DataFrame,
    *,
    correlation_id: str,
    run_id: str = "",
    vendor_request_id: str = "",
    stages: Mapping[str, int] | None = None,
    max_bytes: int = MAX_BYTES,
    batch_id: int | None = None,
) -> list[EncodedBatch]:
    """Cut bars of one symbol, timeframe and source into batches whose payload is at most `max_bytes`.

    `frame` has the columns of BAR_SCHEMA; rows are taken in the order of ts, so that each batch covers a range that
    no other batch of the frame touches. Each batch gets a random `batch_id`, or all of them the one given (that of a
    live flush, which all its series share), also in the column of its payload, and the stage `encoded`. An empty frame
    gives no batch. CPU-bound and thread-safe: call it from a thread.

    Raises:
        InvalidBars: more than one series in the frame, or columns that are not those of BAR_SCHEMA.
        PayloadTooLarge: not even one row fits.
    """
    if frame.is_empty():
        return []
    for name in BAR_SCHEMA:
        if name not in frame.columns:
            raise InvalidBars(f"{name}: the column is missing")
    frame = frame.select(list(BAR_SCHEMA))
    series = {name: _only_value(frame, name) for name in _SERIES}
    if not frame.get_column("ts").is_sorted():
        frame = frame.sort("ts")
    frame = frame.rechunk()
    digests = row_digests(frame)
    batches: list[EncodedBatch] = []
    bytes_a_row = float(GUESSED_BYTES_A_ROW)
    offset = 0
    while offset < frame.height:
        own_id = new_batch_id() if batch_id is None else batch_id
        left = frame.height - offset
        rows = _rows_of_next(left, max_bytes * _MARGIN / bytes_a_row)
        part, payload = _encode_slice(frame, offset, rows, own_id)
        if not batches:
            # The guess is only a guess: where the series is smaller than that, larger batches mean fewer of them.
            better = _rows_of_next(left, max_bytes * _MARGIN * rows / len(payload))
            if better > rows:
                rows = better
                part, payload = _encode_slice(frame, offset, rows, own_id)
        while len(payload) > max_bytes:
            if rows == 1:
                raise PayloadTooLarge(f"one row takes {len(payload)} bytes, more than the {max_bytes} of a batch")
            rows = max(1, min(rows - 1, int(rows * max_bytes / len(payload) * _MARGIN)))
            part, payload = _encode_slice(frame, offset, rows, own_id)
        bytes_a_row = len(payload) / rows
        offset += rows
        ts = part.get_column("ts")
        headers = BatchHeaders(
            batch_id=own_id,
            correlation_id=correlation_id,
            source=series["source"],
            symbol=series["symbol"],
            timeframe=series["timeframe"],
            rows=rows,
            digest=int(digests[offset - rows : offset].sum(dtype=np.uint64)),
            start_ts=ts[0],
            end_ts=ts[-1],
            run_id=run_id,
            vendor_request_id=vendor_request_id,
            stages={**(stages or {}), "encoded": now_ms()},
        )
        batches.append(EncodedBatch(headers, payload, part))
    return batches


def decode(payload: bytes, headers: BatchHeaders) -> pl.DataFrame:
    """Decode the payload of a batch and prove that it is the one of these headers.

    Returns the rows with the columns of BAR_SCHEMA and `batch_id`.

    Raises:
        UnreadableBatch: reason `unreadable_payload` (not Arrow, or rows of another series or batch, or outside the
            range) or `digest_mismatch` (other values or another number of rows than the headers say).
    """
    frame = arrow.decode(payload)
    for name, said in (*((name, getattr(headers, name)) for name in _SERIES), ("batch_id", headers.batch_id)):
        if not frame.get_column(name).eq_missing(said).all():
            raise UnreadableBatch(f"the headers say {name} {said}, the payload holds others", reason=arrow.UNREADABLE)
    if frame.height != headers.rows:
        raise UnreadableBatch(
            f"the headers say {headers.rows} rows, the payload has {frame.height}", reason="digest_mismatch"
        )
    for name in DIGEST_COLUMNS:
        # A null price has a word of its own; these have none.
        if frame.schema[name] != pl.Float64 and frame.get_column(name).null_count():
            raise UnreadableBatch(f"{name} holds nulls, of which there is no digest", reason="digest_mismatch")
    if value_digest(frame) != headers.digest:
        raise UnreadableBatch("the digest of the payload's values is not the headers'", reason="digest_mismatch")
    if not frame.get_column("ts").is_between(headers.start_ts, headers.end_ts).all():
        raise UnreadableBatch(
            f"the headers say ts from {headers.start_ts} to {headers.end_ts}, the payload holds others",
            reason=arrow.UNREADABLE,
        )
    return frame


def strays(payload: bytes, headers: BatchHeaders) -> bool:
    """Tell, without decoding the payload, whether it may hold rows outside the range of its headers.

    What is stored in that range is all that a batch is compared with: a row outside would replace another unseen.
    False is proof; of True `decode` says what is wrong.
    """
    span = arrow.ts_span(payload)
    return span is None or span[0] < to_ms(headers.start_ts) or span[1] > to_ms(headers.end_ts)


def decode_all(
    batches: Sequence[tuple[bytes, BatchHeaders]],
) -> tuple[pl.DataFrame, NDArray[np.uint32], dict[int, UnreadableBatch]]:
    """Decode and prove many small batches at once, for a fraction of what `decode` costs alone.

    Returns the rows of the proven batches as `decode` does, for each row its batch's place in `batches`, and by place
    what `decode` says of the others.
    """
    frame, heights = arrow.decode_all([payload for payload, _ in batches])
    place = np.repeat(np.fromiter(heights, np.uint32, len(heights)), np.fromiter(heights.values(), np.int64))
    doubtful = set(range(len(batches))) - set(heights)
    doubtful |= {at for at, rows in heights.items() if rows != batches[at][1].rows}

    said = pl.DataFrame(
        [[getattr(headers, name) for name in (*_SERIES, "batch_id")] for _, headers in batches],
        schema=[(name, arrow.BATCH_SCHEMA[name]) for name in (*_SERIES, "batch_id")],
        orient="row",
    )[place]
    wrong = pl.Series([False]).new_from_index(0, frame.height)
    for name in said.columns:
        wrong |= frame.get_column(name).ne_missing(said.get_column(name))
    for name in DIGEST_COLUMNS:
        if frame.schema[name] != pl.Float64 and frame.get_column(name).null_count():
            wrong |= frame.get_column(name).is_null()
    bounds = pl.DataFrame(
        {name: [getattr(headers, name) for _, headers in batches] for name in ("start_ts", "end_ts")},
        schema=dict.fromkeys(("start_ts", "end_ts"), TS),
    )[place]
    ts = frame.get_column("ts")
    wrong |= (ts < bounds.get_column("start_ts")) | (ts > bounds.get_column("end_ts"))
    doubtful |= set(place[wrong.to_numpy()].tolist())
    sums = np.zeros(len(batches), np.uint64)
    known = ~np.isin(place, list(doubtful))
    np.add.at(sums, place[known], row_digests(frame.filter(pl.Series(known))))
    digests = np.fromiter((headers.digest for _, headers in batches), np.uint64, len(batches))
    doubtful |= set(np.flatnonzero(sums != digests).tolist())

    errors: dict[int, UnreadableBatch] = {}
    for at in sorted(doubtful):
        try:
            decode(*batches[at])
        except UnreadableBatch as error:
            errors[at] = error
    proven = ~np.isin(place, list(errors))
    return frame.filter(pl.Series(proven)), place[proven], errors


def new_batch_id() -> int:
    """Return a random batch id, 1 … 2^63 − 1."""
    return secrets.randbelow(MAX_BATCH_ID) + 1


def now_ms() -> int:
    """Return the epoch ms of now: what every stage is stamped with."""
    return time.time_ns() // 1_000_000


def _encode_slice(frame: pl.DataFrame, offset: int, rows: int, batch_id: int) -> tuple[pl.DataFrame, bytes]:
    part = frame.slice(offset, rows)
    return part, arrow.encode(part.with_columns(pl.lit(batch_id, pl.UInt64).alias("batch_id")))


def _rows_of_next(left: int, fitting: float) -> int:
    """Share the rows that are left evenly among the fewest batches, so that no crumb is left for the last."""
    return ceil(left / ceil(left / max(1.0, fitting)))


def _only_value(frame: pl.DataFrame, name: str) -> str:
    column = frame.get_column(name)
    value = column[0]
    if not isinstance(value, str) or not value or not column.eq_missing(value).all():
        shown = ", ".join(map(repr, column.unique(maintain_order=True).head(4)))
        raise InvalidBars(f"{name}: a batch holds bars of one {name}, not of {shown}")
    return value

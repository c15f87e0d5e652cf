"""The ingest ledger: what became of every batch, and when it passed each stage. Rows live for 90 days."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Protocol

import polars as pl

from market_pipeline.market.bars import TS
from market_pipeline.market.timeframes import TIMEFRAMES, from_ms
from market_pipeline.stores.clickhouse import Client, probe
from market_pipeline.stores.seconds import AllBarStore
from market_pipeline.stores.sql_files import load_sql

STORED, REJECTED = "stored", "rejected"
STAGES: tuple[str, ...] = (
    "fetched",  # the request was sent to the vendor
    "received",  # its answer was complete
    "decoded",
    "encoded",
    "published",
    "bridge_received",
    "inserted",
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END_OF_TIME = datetime(2299, 1, 1, tzinfo=UTC)
_DTYPES: dict[str, pl.DataType] = {
    "int": pl.UInt32(),
    "str": pl.String(),
    "datetime": TS,
    "datetime | None": TS,
}
_WIDE = {"batch_id", "stream_seq", "digest"}


def now_ms() -> int:
    """Return the epoch ms of now: what stages are stamped with."""
    return time.time_ns() // 1_000_000


class Headers(Protocol):
    """What of a batch's headers (`bus.envelope.BatchHeaders`) goes into the ledger."""

    @property
    def batch_id(self) -> int: ...
    @property
    def correlation_id(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def vendor_request_id(self) -> str: ...
    @property
    def symbol(self) -> str: ...
    @property
    def timeframe(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def digest(self) -> int: ...
    @property
    def start_ts(self) -> datetime: ...
    @property
    def end_ts(self) -> datetime: ...
    @property
    def stages(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestRow:
    """One line of the ledger: one batch, stored or rejected. Times are UTC; a stage that was not passed is None."""

    batch_id: int
    correlation_id: str
    run_id: str
    vendor_request_id: str
    stream: str
    stream_seq: int
    subject: str
    symbol: str
    timeframe: str
    source: str
    outcome: str
    rows: int
    new_rows: int = 0
    restated_rows: int = 0
    withdrawn_rows: int = 0
    unchanged_rows: int = 0
    superseded_rows: int = 0
    rejected_rows: int = 0
    digest: int
    start_ts: datetime
    end_ts: datetime
    error: str = ""
    fetched_at: datetime | None = None
    received_at: datetime | None = None
    decoded_at: datetime | None = None
    encoded_at: datetime | None = None
    published_at: datetime | None = None
    bridge_received_at: datetime | None = None
    inserted_at: datetime

    @classmethod
    def of(
        cls,
        headers: Headers,
        *,
        stream: str,
        stream_seq: int,
        subject: str,
        outcome: str,
        new_rows: int = 0,
        restated_rows: int = 0,
        withdrawn_rows: int = 0,
        unchanged_rows: int = 0,
        superseded_rows: int = 0,
        rejected_rows: int = 0,
        error: str = "",
        stages: Mapping[str, int] | None = None,
    ) -> IngestRow:
        """Make the line of a batch from its headers and what became of it.

        `stages` (epoch ms by name) adds to those of the headers; names that are none of STAGES have no column and are
        left out. A batch without the stage `inserted` is stamped now.
        """
        passed = {"inserted": now_ms(), **headers.stages, **(stages or {})}
        return cls(
            batch_id=headers.batch_id,
            correlation_id=headers.correlation_id,
            run_id=headers.run_id,
            vendor_request_id=headers.vendor_request_id,
            stream=stream,
            stream_seq=stream_seq,
            subject=subject,
            symbol=headers.symbol,
            timeframe=headers.timeframe,
            source=headers.source,
            outcome=outcome,
            rows=headers.rows,
            new_rows=new_rows,
            restated_rows=restated_rows,
            withdrawn_rows=withdrawn_rows,
            unchanged_rows=unchanged_rows,
            superseded_rows=superseded_rows,
            rejected_rows=rejected_rows,
            digest=headers.digest,
            start_ts=headers.start_ts,
            end_ts=headers.end_ts,
            error=error,
            **{f"{name}_at": from_ms(passed[name]) for name in STAGES if name in passed},
        )


_SCHEMA = pl.Schema(
    {each.name: pl.UInt64() if each.name in _WIDE else _DTYPES[str(each.type)] for each in fields(IngestRow)}
)


class IngestLedger:
    """Write and read the ledger; blocking and thread-safe, raises StoreError's kinds."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def probe(self) -> float:
        """Prove that the store reads and writes; return the seconds that it took."""
        return probe(self._client)

    def record(self, rows: Iterable[IngestRow]) -> None:
        """Write lines in one insert. A batch may be recorded again after a redelivery."""
        lines = [asdict(each) for each in rows]
        if lines:
            self._client.insert_frame("ingest_batches", pl.DataFrame(lines, schema=_SCHEMA))

    def outcomes(self, batch_ids: Iterable[int]) -> dict[int, IngestRow]:
        """Return the line of each batch that has one.

        Of several, a stored one beats a rejected one, and the earliest counts: it tells what the batch changed.
        """
        wanted = list(batch_ids)
        if not wanted:
            return {}
        frame = self._client.frame(load_sql("batch_outcomes"), {"batch_ids": wanted})
        return {row["batch_id"]: IngestRow(**row) for row in frame.iter_rows(named=True)}

    def trace(self, batch_id: int) -> list[IngestRow]:
        """Return every line of a batch, oldest first; none once they are 90 days old."""
        frame = self._client.frame(load_sql("batch_records"), {"batch_id": batch_id})
        return [IngestRow(**row) for row in frame.iter_rows(named=True)]

    def trace_bar(self, symbol: str, timeframe: str, ts: datetime, source: str | None = None) -> list[IngestRow]:
        """Return the lines of every batch that wrote a stored row of one bar, of one source or of all, oldest first.

        A live flush has one id for all its symbols and timeframes, and a line for each timeframe: only those of the
        bar's own are returned.
        """
        rows = AllBarStore(self._client).rows_of_bar(symbol, timeframe, ts)
        if source is not None:
            rows = rows.filter(pl.col("source") == source)
        lines = [
            line
            for batch_id in rows["batch_id"].unique().to_list()
            for line in self.trace(batch_id)
            if line.timeframe == timeframe
        ]
        return sorted(lines, key=lambda line: line.inserted_at)

    def run_summary(self, run_id: str) -> pl.DataFrame:
        """Return the sums of a run by symbol, timeframe and source: batches, rows and what became of them."""
        return self._client.frame(load_sql("run_summary"), {"run_id": run_id})

    def latency(
        self,
        run_id: str = "",
        *,
        stream: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> dict[str, float]:
        """Return the milliseconds that stored batches took between stages: of one run, one stream, or all.

        Keys are a pair of stages and a percentile, such as published_to_inserted_p50, _p95, _p99 and _max. Pairs that
        no batch passed are absent; {} where no batch was stored.
        """
        frame = self._client.frame(
            load_sql("batch_latency"),
            {"run_id": run_id, "stream": stream, "since": since or _EPOCH, "until": until or _END_OF_TIME},
        )
        return {
            f"{row['stage']}_{percentile}": float(row[percentile])
            for row in frame.iter_rows(named=True)
            for percentile in ("p50", "p95", "p99", "max")
        }

    def rows_settled(self, batch_ids: Iterable[int], timeframe: str) -> dict[int, int]:
        """Return the rows of one timeframe that are stored or rejected of each batch id; unknown ids are absent.

        A live flush has one id and may be stored in several groups: nothing more of it comes once this is what was
        published. A group that is delivered again counts once.
        """
        wanted = list(batch_ids)
        if not wanted:
            return {}
        statement, parameters = load_sql("batch_rows_settled"), {"batch_ids": wanted, "timeframe": timeframe}
        return {batch_id: int(rows) for batch_id, rows in self._client.rows(statement, parameters)}

    def live_latency(self, since: datetime, until: datetime | None = None) -> dict[str, float]:
        """Return how soon live bars were stored in [since, until), and how many.

        Keys: received_to_inserted_p50, _p95, _p99 and window_end_to_inserted_p50, _p95, _p99 in milliseconds, over
        flushes: from the arrival of the newest tick, and from the end of the newest window, to the row in ClickHouse.
        Flushes of new bars alone count, since a revision is late by its nature. rows_per_minute and flushes as well.
        {} where nothing was stored.
        """
        parameters = {
            "since": since,
            "until": until or datetime.now(UTC),
            "timeframes": list(TIMEFRAMES),
            "lengths": [each.milliseconds for each in TIMEFRAMES.values()],
        }
        frame = self._client.frame(load_sql("live_latency"), parameters)
        row = frame.row(0, named=True)
        if not row["rows_per_minute"]:
            return {}
        return {name: float(value) for name, value in row.items() if value is not None and value == value}

"""The ledger of vendor requests: the checkpoint of a load.

A request is recorded as done only after its bars are proven stored, so a retry of the same root run skips what is
done; a new run asks again, and so finds restatements.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

import polars as pl

from market_pipeline.market.bars import TS
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.sql_files import load_sql

OK, EMPTY, FAILED = "ok", "empty", "failed"
Interval = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorRequestRow:
    """One request for the minutes [start_ts, end_ts) of a symbol (key), and what came of it. Times are UTC.

    outcome: ok (bars came, and are stored), empty (the vendor has none) or failed.
    vendor_request_id: the vendor's own id of its (last) answer.
    """

    root_run_id: str
    run_id: str = ""
    symbol: str
    start_ts: datetime
    end_ts: datetime
    requested_at: datetime
    outcome: str
    rows: int = 0
    bad_rows: int = 0
    pages: int = 0
    attempts: int = 1
    vendor_request_id: str = ""
    error: str = ""
    request_id: int = field(default_factory=lambda: secrets.randbits(63))

    def __post_init__(self) -> None:
        if self.outcome not in (OK, EMPTY, FAILED):
            raise ValueError(f"{self.outcome!r} is no outcome of a vendor request")


_SCHEMA = pl.Schema(
    {
        "root_run_id": pl.String(),
        "run_id": pl.String(),
        "symbol": pl.String(),
        "start_ts": TS,
        "end_ts": TS,
        "requested_at": TS,
        "outcome": pl.String(),
        "rows": pl.UInt32(),
        "bad_rows": pl.UInt32(),
        "pages": pl.UInt16(),
        "attempts": pl.UInt16(),
        "vendor_request_id": pl.String(),
        "error": pl.String(),
        "request_id": pl.UInt64(),
    }
)


class VendorRequestLedger:
    """Write and read the ledger; blocking and thread-safe, raises StoreError's kinds."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def record(self, requests: Iterable[VendorRequestRow]) -> None:
        """Write requests; one recorded before under the same root run and request_id is replaced."""
        lines = [asdict(each) for each in requests]
        if lines:
            version = pl.lit(time.time_ns(), pl.UInt64).alias("version")
            self._client.insert_frame("vendor_requests", pl.DataFrame(lines, schema=_SCHEMA).with_columns(version))

    def done(self, root_run_id: str, symbol: str) -> list[Interval]:
        """Return what this root run has asked with success (bars stored, or none there), merged, in order."""
        rows = self._client.rows(load_sql("vendor_requests_done"), {"root_run_id": root_run_id, "symbol": symbol})
        return merged((start, end) for start, end in rows)

    def asked(
        self, symbol: str, start: datetime, end: datetime, *, settle: timedelta = timedelta(minutes=5)
    ) -> list[Interval]:
        """Return the parts of [start, end) that any run has asked with success once they had settled, merged.

        A minute had settled when it ended at least `settle` before the request; later minutes of the same request
        don't count.
        """
        rows = self._client.rows(load_sql("vendor_requests_asked"), {"symbol": symbol, "start": start, "end": end})
        settled = ((max(first, start), min(last, end, asked_at - settle)) for first, last, asked_at in rows)
        return merged((first, last) for first, last in settled if first < last)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Join half-open intervals that overlap or touch; return them in order."""
    out: list[Interval] = []
    for start, end in sorted(intervals):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out

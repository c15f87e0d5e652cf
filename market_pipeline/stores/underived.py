"""What a repair still has to derive: ranges that outlive the process which asked for their minutes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import polars as pl

from market_pipeline.market.bars import TS
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.sql_files import load_sql
from market_pipeline.stores.vendor_requests import Interval

_SCHEMA = pl.Schema({"start_ts": TS, "end_ts": TS, "version": pl.UInt64()})


class Underived:
    """Write and read the ranges; blocking and thread-safe, raises StoreError's kinds."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def note(self, symbol: str, intervals: Sequence[Interval]) -> None:
        """Note intervals [start, end) before their minutes are asked for."""
        version = time.time_ns()
        self._write(symbol, pl.DataFrame([(*one, version) for one in intervals], schema=_SCHEMA, orient="row"), 0)

    def waiting(self, symbol: str) -> pl.DataFrame:
        """Return what is noted and not yet derived: start_ts, end_ts (exclusive), UTC, and version; in order."""
        frame = self._client.frame(load_sql("underived"), {"symbol": symbol})
        return frame.select(pl.col(name).cast(dtype) for name, dtype in _SCHEMA.items())

    def forget(self, symbol: str, derived: pl.DataFrame) -> None:
        """Withdraw ranges, as `waiting` gave them, that are derived; what was noted since then stays."""
        self._write(symbol, derived.with_columns(pl.col("version") + 1), 1)

    def _write(self, symbol: str, ranges: pl.DataFrame, is_deleted: int) -> None:
        if ranges.height:
            marks = {"symbol": pl.lit(symbol), "is_deleted": pl.lit(is_deleted, pl.UInt8)}
            self._client.insert_frame("underived", ranges.with_columns(**marks))

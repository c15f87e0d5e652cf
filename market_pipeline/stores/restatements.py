"""Corrections of stored bars, by the day on which they became known."""

from __future__ import annotations

from datetime import datetime

import polars as pl

from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.sql_files import load_sql


class Restatements:
    """Ask what was corrected, through one Client; blocking and thread-safe, raises StoreError's kinds."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def by_day(self, start: datetime, end: datetime) -> pl.DataFrame:
        """Return the corrections that became known in [start, end), by UTC day, symbol, timeframe and source.

        Columns, newest day first: date, symbol (key), timeframe, source; counts (UInt32) `restated` (other values),
        `demoted` (no longer complete), `withdrawn`, `returned` (after it was withdrawn) and `completed` (was
        incomplete, so that nobody could rely on it); `largest_close`, `largest_high`, `largest_low` (Float64, the
        largest relative change, 0.01 is 1 %, of bars that had been complete; null without one); `largest_ts` and
        `largest_batch`, of the bar that changed most and the batch that changed it; `first_ts`, `last_ts` (of the
        bars); `first_known_at`, `last_known_at`; `batches` (UInt32).
        """
        return self.client.frame(load_sql("restatements_by_day"), {"start": start, "end": end})

"""Observations of external datasets in ClickHouse. Blocking and thread-safe; raises StoreError's kinds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import polars as pl

from market_pipeline.market.external import OBSERVATION_SCHEMA
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.sql_files import load_sql

TABLE = "external_observations"
# What DateTime64(3) spans.
FIRST, LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2299, 12, 31, tzinfo=UTC)


class ExternalStore:
    """Write and read observations through one Client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def insert(self, frame: pl.DataFrame) -> None:
        """Insert rows with the columns of OBSERVATION_SCHEMA, `dataset` and `batch_id` (UInt64)."""
        if frame.height:
            self._client.insert_frame(TABLE, frame.select("dataset", *OBSERVATION_SCHEMA, "batch_id"))

    def stored(self, dataset: str, series: Sequence[str], first: datetime, last: datetime) -> pl.DataFrame:
        """Return the final rows of some series with ts in [first, last], both inclusive, tombstones included.

        Columns of OBSERVATION_SCHEMA, sorted by series and ts.
        """
        parameters = {"dataset": dataset, "series": list(series), "first": first, "last": last}
        return self._client.frame(load_sql("external_final_rows"), parameters)

    def read(
        self, dataset: str, series: str = "", start: datetime | None = None, end: datetime | None = None
    ) -> pl.DataFrame:
        """Return the observations of a dataset, of one series or of all, with ts in [start, end).

        Columns dataset, series, ts, value; sorted by series and ts.
        """
        parameters = {"dataset": dataset, "series": series, "start": start or FIRST, "end": end or LAST}
        return self._client.frame(load_sql("external_read"), parameters)

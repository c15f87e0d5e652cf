"""Facts about the bars stored: what there is, from when to when, how new. For checks, pictures and the CLI."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from market_pipeline.market.bars import BAR_SCHEMA, STORED_SCHEMA, TS, implausible
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.sql_files import load_sql


class BarFacts:
    """Ask about bars through one Client; blocking and thread-safe, raises StoreError's kinds."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def overview(self) -> pl.DataFrame:
        """Return what is stored: symbol, timeframe, bars, first_ts, last_ts, last_ingested_at; sorted by the first two.

        `bars` counts a bar that several sources have once.
        """
        return self.client.frame(load_sql("overview"))

    def max_revision(self, symbol: str, timeframe: str, source: str, start: datetime, end: datetime) -> int:
        """Return the largest revision that a source ever wrote in [start, end), tombstones included; 0 for none."""
        parameters = {"symbol": symbol, "timeframe": timeframe, "source": source, "start": start, "end": end}
        return int(self.client.rows(load_sql("max_revision"), parameters)[0][0])

    def counts_by_day(self, symbol: str, timeframe: str, start: datetime, end: datetime) -> pl.DataFrame:
        """Return the winning bars of [start, end) by UTC day: date, rows, complete_rows (UInt32), ingested_at.

        Days without a bar are absent.
        """
        parameters = {"symbol": symbol, "timeframe": timeframe, "start": start, "end": end}
        return self.client.frame(load_sql("counts_by_day"), parameters)

    def live_day(self, symbols: Sequence[str], start: datetime, end: datetime, due: datetime) -> pl.DataFrame:
        """Return what [start, end) holds of some symbols, by symbol and timeframe, winning bars of 1m and more.

        Columns: symbol, timeframe, rows, complete_rows, live_rows (made of live ticks alone), due_rows (opened before
        `due`), live_ticks (quotes or trades in live minutes), last_ts, last_ingested_at.
        """
        parameters = {"symbols": list(symbols), "start": start, "end": end, "due": due}
        return self.client.frame(load_sql("live_day"), parameters)

    def live_bars(self, timeframe: str, since: datetime) -> pl.DataFrame:
        """Return the live bars that opened at `since` or later by symbol: rows, complete_rows, ticks, last_ts."""
        return self.client.frame(load_sql("live_bars"), {"timeframe": timeframe, "since": since})

    def latest(self, symbols: Sequence[str], timeframe: str) -> pl.DataFrame:
        """Return the newest bar of each symbol: symbol, ts, complete_ts (null if none is complete), ingested_at.

        Symbols without a bar are absent; sorted by symbol.
        """
        frame = self.client.frame(load_sql("latest"), {"symbols": list(symbols), "timeframe": timeframe})
        return frame.rename({"last_ts": "ts", "last_ingested_at": "ingested_at"})

    def span(self, symbol: str, timeframe: str) -> tuple[datetime, datetime, int] | None:
        """Return ts of the first and the last bar and the number of bars; None if there is none."""
        rows = self.client.rows(load_sql("span"), {"symbol": symbol, "timeframe": timeframe})
        return (rows[0][0], rows[0][1], rows[0][2]) if rows else None

    def source_spans(
        self, symbols: Sequence[str], timeframe: str, source: str, start: datetime, end: datetime
    ) -> pl.DataFrame:
        """Return from when to when one source wrote bars of [start, end): symbol, first_ts, last_ts (both inclusive).

        Symbols of which it wrote none are absent; sorted by symbol.
        """
        parameters = {
            "symbols": list(symbols),
            "timeframe": timeframe,
            "source": source,
            "start": start,
            "end": end,
        }
        return self.client.frame(load_sql("source_spans"), parameters)

    def implausible(
        self, symbols: Sequence[str], timeframes: Sequence[str], start: datetime, end: datetime, *, limit: int = 1000
    ) -> pl.DataFrame:
        """Return winning bars of [start, end) that cannot be true of a market: BAR_SCHEMA and `reason`.

        At most `limit` of them, sorted by symbol, timeframe and ts.
        """
        parameters = {
            "symbols": list(symbols),
            "timeframes": list(timeframes),
            "start": start,
            "end": end,
            "limit": limit,
        }
        frame = self.client.frame(load_sql("suspects"), parameters)
        return implausible(frame.select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items()))

    def rows_of_bar(self, symbol: str, timeframe: str, ts: datetime) -> pl.DataFrame:
        """Return every version of one bar: of all sources, those that were replaced included.

        Columns of STORED_SCHEMA, sorted by source and falling revision.
        """
        frame = self.client.frame(load_sql("all_rows_of_bar"), {"symbol": symbol, "timeframe": timeframe, "ts": ts})
        constants = [
            pl.lit(symbol).alias("symbol"),
            pl.lit(timeframe).alias("timeframe"),
            pl.lit(ts).cast(TS).alias("ts"),
        ]
        return frame.with_columns(constants).select(list(STORED_SCHEMA))

"""Minutes of stored ticks: the same fold as live, and a proof of completeness from what the store knows; pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import polars as pl

from market_pipeline.market.aggregation import bars_from_quotes, bars_from_trades
from market_pipeline.market.bars import BAR_SCHEMA, HISTORICAL_AGGREGATED
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.ticks import quotes_of, split_valid_ticks, trades_of
from market_pipeline.market.timeframes import MINUTE

Interval = tuple[datetime, datetime]


def minutes_of_ticks(ticks: pl.DataFrame, instrument: Instrument, *, ahead: timedelta) -> pl.DataFrame:
    """Return the 1m bars of ticks (TICK_SCHEMA) of one symbol: of quotes for forex, of trades for everything else.

    As in live time, malformed ticks and those whose time lies more than `ahead` of their arrival make no bar.
    Returns ts, open, high, low, close, volume, vwap and trades (UInt32), by ts.
    """
    good, _ = split_valid_ticks(ticks)
    good = good.filter(pl.col("ts") <= pl.col("received_at") + ahead)
    if instrument.asset_class == "forex":
        return bars_from_quotes(quotes_of(good), "1m", instrument.price_basis)
    return bars_from_trades(trades_of(good), "1m")


def proven_minutes(ts: pl.Series, sessions: Iterable[Interval], losses: Iterable[Interval]) -> pl.Series:
    """Return (Boolean) for which minutes, given by their opens, it is proven that no tick is missing.

    Proven is a minute that begins and ends within what one session is seen to span (from its first stored tick to its
    last, both sides of the minute), and that no loss touches.
    """
    frame = pl.DataFrame({"ts": ts})
    opened, closed = pl.col("ts"), pl.col("ts") + MINUTE
    whole = pl.any_horizontal(pl.lit(False), *((opened >= start) & (closed <= end) for start, end in sessions))
    lost = pl.any_horizontal(pl.lit(False), *((opened < end) & (closed > start) for start, end in losses))
    return frame.select(proven=whole & ~lost)["proven"]


def aggregated_bars(minutes: pl.DataFrame, key: str, complete: pl.Series, revision: int) -> pl.DataFrame:
    """Return the minutes as BAR_SCHEMA rows of the source historical_aggregated."""
    return minutes.with_columns(
        symbol=pl.lit(key),
        timeframe=pl.lit("1m"),
        source=pl.lit(HISTORICAL_AGGREGATED),
        origin=pl.lit(""),
        complete=complete,
        revision=pl.lit(revision, pl.UInt64),
        is_deleted=pl.lit(0, pl.UInt8),
    ).select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())

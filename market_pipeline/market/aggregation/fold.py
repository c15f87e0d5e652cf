"""Fold bars into bars of a coarser timeframe."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_pipeline.market.aggregation.reduce import BarColumns, Ints, reduce_bars, run_starts
from market_pipeline.market.aggregation.windows import window_opens
from market_pipeline.market.bars import TS
from market_pipeline.market.timeframes import Timeframe, WeekStart, timeframe


def fold(
    bars: pl.DataFrame,
    tf: str | Timeframe,
    *,
    week_start: WeekStart = "sunday",
    day_zone: str = "UTC",
    offset: timedelta = timedelta(0),
) -> pl.DataFrame:
    """Fold bars of any finer timeframe into bars of `tf`, left-closed and left-labelled.

    `bars` has ts (Datetime ms UTC), open, high, low, close, volume (Float64), and may have symbol, vwap and trades (of
    several symbols in any order; rows of equal symbol and ts keep theirs). Every window with a bar gives a bar: whether
    it is closed or whole, the caller must know. Windows of 4h and less are aligned to UTC; days begin `offset` after
    midnight in `day_zone` (New York days: "America/New_York"; fixed UTC-5 days: "Etc/GMT+5", or offset=5 h), weeks
    with the day `week_start` there.

    Returns symbol (where given), ts, open, high, low, close, volume, vwap (null where unknown), trades (UInt32) and
    minutes (UInt32: rows folded; summed where the bars have it already), sorted by symbol and ts.

    Raises:
        UnknownTimeframe, BadRange: the timeframe, the zone or the week's start is none.
    """
    tf = timeframe(tf)
    bars = in_order(bars)
    columns = bar_columns(bars)
    opens = window_opens(columns.ts, tf, week_start=week_start, day_zone=day_zone, offset=offset)
    starts = window_starts(bars, opens)
    folded = reduce_bars(columns, starts, opens[starts])
    if "minutes" in bars.columns:
        rows = np.add.reduceat(bars.get_column("minutes").cast(pl.Int64).to_numpy(), starts) if len(starts) else starts
    else:
        rows = np.diff(starts, append=bars.height)
    return bar_frame(folded, bars, starts).with_columns(pl.Series("minutes", rows, dtype=pl.UInt32))


def in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows sorted by symbol (where there is one) and ts; the order of equal ones is kept."""
    if "symbol" not in rows.columns or one_value(rows.get_column("symbol")):
        return rows if rows.get_column("ts").is_sorted() else rows.sort("ts", maintain_order=True)
    return rows.sort("symbol", "ts", maintain_order=True)


def one_value(column: pl.Series) -> bool:
    """Say whether a column holds one value only (or none)."""
    return column.is_empty() or bool((column == column[0]).all())


def bar_columns(bars: pl.DataFrame) -> BarColumns:
    """Return a bars frame as arrays; without vwap and trades it counts as unknown and 0."""
    floats = {name: bars.get_column(name).to_numpy() for name in ("open", "high", "low", "close", "volume")}
    vwap = bars.get_column("vwap").fill_null(np.nan).to_numpy() if "vwap" in bars.columns else None
    trades = bars.get_column("trades").cast(pl.Int64).to_numpy() if "trades" in bars.columns else None
    return BarColumns(
        ts=epoch_ms(bars.get_column("ts")),
        vwap=np.full(bars.height, np.nan) if vwap is None else vwap,
        trades=np.zeros(bars.height, dtype=np.int64) if trades is None else trades,
        **floats,
    )


def epoch_ms(ts: pl.Series) -> Ints:
    """Return a column of times as epoch ms."""
    return ts.dt.epoch("ms").to_numpy()


def window_starts(rows: pl.DataFrame, opens: Ints) -> Ints:
    """Return the first row of each window of each symbol; `rows` is in order."""
    return run_starts(opens, *_symbol_codes(rows))


def bar_frame(bars: BarColumns, rows: pl.DataFrame, starts: Ints) -> pl.DataFrame:
    """Return bars as a frame, with the symbol of the rows that they were made of."""
    symbol = {"symbol": rows.get_column("symbol").gather(starts)} if "symbol" in rows.columns else {}
    return pl.DataFrame(
        {
            **symbol,
            "ts": pl.Series(bars.ts).cast(TS),
            "open": bars.open,
            "high": bars.high,
            "low": bars.low,
            "close": bars.close,
            "volume": bars.volume,
            "vwap": pl.Series(bars.vwap).fill_nan(None),
            "trades": pl.Series(bars.trades).cast(pl.UInt32),
        }
    )


def _symbol_codes(rows: pl.DataFrame) -> list[NDArray[np.generic]]:
    if "symbol" not in rows.columns or one_value(rows.get_column("symbol")):
        return []
    return [rows.get_column("symbol").rle_id().to_numpy()]

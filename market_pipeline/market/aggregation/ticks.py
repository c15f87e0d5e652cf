"""Make bars from quotes and trades."""

from __future__ import annotations

import numpy as np
import polars as pl

from market_pipeline.errors import InvalidBars
from market_pipeline.market.aggregation.fold import bar_frame, epoch_ms, in_order, window_starts
from market_pipeline.market.aggregation.reduce import BarColumns, Floats, Ints, mean_price, sums, volume_sums
from market_pipeline.market.aggregation.windows import window_opens
from market_pipeline.market.instruments import PriceBasis
from market_pipeline.market.timeframes import Timeframe, timeframe


def bars_from_quotes(quotes: pl.DataFrame, tf: str | Timeframe, basis: PriceBasis = "mid") -> pl.DataFrame:
    """Make bars of `tf` from quotes: ts (Datetime UTC), bid, ask (Float64) and perhaps symbol, in any order.

    The price of a quote is its bid, its ask, or their mean: taken quote by quote, for the mean of the highest bid and
    the highest ask is no price that was ever quoted. Every quote counts: exact repeats are real, and so are crossed
    quotes (bid above ask), which are counted apart. Of quotes of the same ts the order is kept.

    Returns symbol (where given), ts, open, high, low, close, volume (the number of quotes, as the vendor counts it),
    vwap (null: a quote has no size that was traded), trades and crossed (UInt32: quotes, crossed quotes).

    Raises:
        UnknownTimeframe: the timeframe is none.
        InvalidBars: a bid or an ask is null or not finite.
    """
    tf, quotes = timeframe(tf), in_order(quotes)
    bid, ask = (_finite(quotes, name) for name in ("bid", "ask"))
    price = {"mid": (bid + ask) / 2, "bid": bid, "ask": ask}[basis]
    opens, starts = _windows(quotes, tf)
    count = np.diff(starts, append=quotes.height)
    bars = _bars(price, starts, opens, volume=count.astype(np.float64), vwap=np.full(len(starts), np.nan), trades=count)
    crossed = np.add.reduceat((bid > ask).astype(np.int64), starts) if len(starts) else starts
    return bar_frame(bars, quotes, starts).hstack([pl.Series("crossed", crossed.astype(np.uint32))])


def bars_from_trades(trades: pl.DataFrame, tf: str | Timeframe) -> pl.DataFrame:
    """Make bars of `tf` from trades: ts (Datetime UTC), price, size (Float64) and perhaps symbol, in any order.

    Returns symbol (where given), ts, open, high, low, close, volume (sum of sizes), vwap (mean of prices weighted by
    size; null where no size) and trades (UInt32: their number). Of trades of the same ts the order is kept.

    Raises:
        UnknownTimeframe: the timeframe is none.
        InvalidBars: a price or a size is null or not finite.
    """
    tf, trades = timeframe(tf), in_order(trades)
    price, size = (_finite(trades, name) for name in ("price", "size"))
    opens, starts = _windows(trades, tf)
    volume = volume_sums(size, starts)
    bars = _bars(price, starts, opens, volume=volume, vwap=volume, trades=np.diff(starts, append=trades.height))
    vwap = mean_price(sums(price * size, starts), volume, bars.low, bars.high)
    return bar_frame(bars, trades, starts).with_columns(pl.Series("vwap", vwap).fill_nan(None))


def _windows(ticks: pl.DataFrame, tf: Timeframe) -> tuple[Ints, Ints]:
    opens = window_opens(epoch_ms(ticks.get_column("ts")), tf)
    starts = window_starts(ticks, opens)
    return opens[starts], starts


def _bars(price: Floats, starts: Ints, opens: Ints, *, volume: Floats, vwap: Floats, trades: Ints) -> BarColumns:
    if len(starts) == 0:
        return BarColumns(opens, price, price, price, price, volume, vwap, trades)
    return BarColumns(
        ts=opens,
        open=price[starts],
        high=np.maximum.reduceat(price, starts),
        low=np.minimum.reduceat(price, starts),
        close=price[np.append(starts[1:], len(price)) - 1],
        volume=volume,
        vwap=vwap,
        trades=trades,
    )


def _finite(ticks: pl.DataFrame, name: str) -> Floats:
    column = ticks.get_column(name)
    prices: Floats = (column if column.dtype == pl.Float64 else column.cast(pl.Float64)).to_numpy()  # null becomes NaN
    finite = np.isfinite(prices)
    if not finite.all():
        first = int(finite.argmin())
        ts = ticks.get_column("ts")[first]
        raise InvalidBars(f"{name}: {column[first]!r} is not a price or size, at ts {ts.isoformat()}")
    return prices

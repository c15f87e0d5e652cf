"""The quotes and trades of which a minute bar is made: exactly as many as it counts, folding into its prices.

The first tick is at the open, the last at the close, one at the high and one at the low, the rest between; real quotes
take their place on the days for which the samples have them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from market_pipeline.simulator import sample_data
from market_pipeline.simulator.bars import Bars
from market_pipeline.simulator.hashing import FloatArray, Int64Array, draw, fields, key
from market_pipeline.simulator.sessions import DAY_MS, MINUTE_MS
from market_pipeline.simulator.tickers import market_of, profile


@dataclass(frozen=True, slots=True)
class Ticks:
    """Hold ticks in time order.

    `ts` in epoch ms; `price` is the bid of a quote or the price of a trade; `ask` belongs to quotes, `size` to trades
    (NaN for the other). `number` counts from zero within the minute: with the minute it identifies the tick.
    """

    ts: Int64Array
    number: Int64Array
    price: FloatArray
    ask: FloatArray
    size: FloatArray

    def __len__(self) -> int:
        return len(self.ts)

    def take(self, at: slice | np.ndarray) -> Ticks:
        """Return the ticks at the positions."""
        return Ticks(self.ts[at], self.number[at], self.price[at], self.ask[at], self.size[at])

    def between(self, start_ms: int, end_ms: int) -> Ticks:
        """Return the ticks in [start, end)."""
        return self.take(slice(*np.searchsorted(self.ts, (start_ms, end_ms))))

    def to_frame(self) -> pl.DataFrame:
        """Return a frame: ts Datetime('ms', 'UTC'); bid, ask, price, size Float64, null where they don't apply."""
        frame = pl.DataFrame({"ts": self.ts, "value": self.price, "ask": self.ask, "size": self.size})
        quote = pl.col("ask").is_not_nan()
        return frame.select(
            pl.col("ts").cast(pl.Datetime("ms", "UTC")),
            bid=pl.when(quote).then("value"),
            ask=pl.when(quote).then("ask"),
            price=pl.when(~quote).then("value"),
            size=pl.when(~quote).then("size"),
        )


def ticks_of(ticker: str, bars: Bars, seed: int) -> Ticks:
    """Return the ticks of the minute bars. Raises KeyError for an unknown ticker."""
    of = profile(ticker)
    real = sample_data.quotes(ticker)
    made = _made(ticker, bars, seed, quotes=of.market == "forex", decimals=of.decimals)
    if real is None or not len(bars):
        return made
    start, end = int(real.ts[0]) // DAY_MS * DAY_MS, (int(real.ts[-1]) // DAY_MS + 1) * DAY_MS
    inside = slice(*np.searchsorted(bars.ts, (start, end)))
    covered = bars.ts[inside]
    if not len(covered):
        return made
    shown = np.isin(real.ts // MINUTE_MS * MINUTE_MS, covered)
    ts = real.ts[shown]
    minute = ts // MINUTE_MS
    number = np.arange(len(ts)) - np.searchsorted(minute, minute)
    sample = Ticks(ts, number, real.bid[shown], real.ask[shown], np.full(len(ts), np.nan))
    before, after = np.searchsorted(made.ts, (start, end))
    return joined([made.take(slice(0, before)), sample, made.take(slice(after, None))])


def fold_ticks(ticks: Ticks, window_ms: int) -> Bars:
    """Fold ticks into bars of a fixed length, left-closed and left-labelled."""
    if not len(ticks):
        return Bars.empty()
    start = ticks.ts // window_ms * window_ms
    at = np.flatnonzero(np.diff(start, prepend=start[0] - 1))
    last = np.append(at[1:], len(start)) - 1
    trades = last - at + 1
    quoted = not np.isnan(ticks.ask[0])
    weight = np.ones(len(ticks)) if quoted else ticks.size
    volume = np.add.reduceat(weight, at).round(8)
    return Bars(
        ts=start[at],
        open=ticks.price[at],
        high=np.maximum.reduceat(ticks.price, at),
        low=np.minimum.reduceat(ticks.price, at),
        close=ticks.price[last],
        volume=volume,
        vwap=(np.add.reduceat(ticks.price * weight, at) / np.add.reduceat(weight, at)).round(6),
        trades=trades,
    )


def joined(parts: list[Ticks]) -> Ticks:
    """Join parts that follow each other in time."""
    return Ticks(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("ts", "number", "price", "ask", "size"))
    )


def _made(ticker: str, bars: Bars, seed: int, *, quotes: bool, decimals: int) -> Ticks:
    count = bars.trades
    of_bar = np.repeat(np.arange(len(bars)), count)
    first = np.cumsum(count) - count
    number = np.arange(len(of_bar), dtype=np.int64) - first[of_bar]
    minute = bars.ts // MINUTE_MS
    bits = fields(draw(key(seed, ticker, "tick"), minute[of_bar] * 65_536 + number))
    share = bits / 65536.0
    ts = bars.ts[of_bar] + np.floor((number + share[:, 0]) / count[of_bar] * MINUTE_MS).astype(np.int64)

    low, high = bars.low[of_bar], bars.high[of_bar]
    price = (low + (high - low) * share[:, 1]).round(decimals).clip(low, high)
    at_high, at_low = _extremes(bars, draw(key(seed, ticker, "extremes"), minute))
    # The order matters for minutes of one to three ticks: open and close always hold.
    price[(first + at_low)] = bars.low
    price[(first + at_high)] = bars.high
    price[first] = bars.open
    price[first + count - 1] = bars.close

    nothing = np.full(len(ts), np.nan)
    if quotes:
        spread = (5 + bits[:, 2] % 12).astype(np.float64) * 10.0**-decimals
        return Ticks(ts, number, price, (price + spread).round(decimals), nothing)
    return Ticks(ts, number, price, nothing, _sizes(ticker, bars, of_bar, first, share[:, 3]))


def _extremes(bars: Bars, drawn: np.ndarray) -> tuple[Int64Array, Int64Array]:
    """Return the numbers of the ticks at the high and at the low: distinct, and inside the minute from four ticks on.

    With three ticks the middle one takes whichever extreme is neither open nor close (a real minute of three ticks
    can have one only); with fewer, open and close are the extremes.
    """
    count = bars.trades
    inner = np.maximum(count - 2, 1)
    at_high = 1 + (drawn >> np.uint64(8)).astype(np.int64) % inner
    at_low = 1 + (drawn >> np.uint64(40)).astype(np.int64) % np.maximum(inner - 1, 1)
    at_low += at_low >= at_high
    crowded = count < 4
    free = crowded & (bars.high > np.maximum(bars.open, bars.close))
    middle = np.minimum(1, count - 1)
    at_high = np.where(crowded, np.where(free, middle, 0), at_high)
    at_low = np.where(crowded, np.where(free, 0, middle), at_low)
    return at_high, at_low


def _sizes(ticker: str, bars: Bars, of_bar: Int64Array, first: Int64Array, share: FloatArray) -> FloatArray:
    unit = 1.0 if market_of(ticker) == "stocks" else 1e-8
    mean = (bars.volume / bars.trades)[of_bar]
    size = np.maximum(np.floor(mean * (0.5 + 0.5 * share) / unit), 1.0) * unit
    # The minute's last trade takes what is left, so that the sizes sum to the volume.
    last = first + bars.trades - 1
    size[last] = 0.0
    size = size.round(8)
    size[last] = (bars.volume - np.add.reduceat(size, first)).round(8)
    return size

"""Generated minute bars: a price that wanders on every scale, reachable at any minute without walking there.

The price at a minute's edge is a level times one plus a sum of value noise, one layer per scale: each layer draws a
number per lattice point and interpolates between. A bar opens at its minute's first edge (give or take a tick), closes
at its last, and its wicks, counts and volume come from the minute's own random number. Only additions and
multiplications are used: they round alike on every processor, which `exp` and its kind do not.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from market_pipeline.simulator.bars import Bars
from market_pipeline.simulator.hashing import FloatArray, Int64Array, UInt64Array, draw, fields, key, signed
from market_pipeline.simulator.sessions import DAY_MINUTES, DAY_MS, MINUTE_MS, open_minutes
from market_pipeline.simulator.tickers import Market, Profile, profile

# (period in days, amplitude) and (period in minutes, amplitude), for a volatility of one.
_DAY_LAYERS = ((365, 0.08), (30, 0.02), (7, 0.008), (1, 0.004))
_MINUTE_LAYERS = ((240, 0.0016), (60, 0.0008), (12, 0.0004), (3, 0.0002), (1, 0.0001))
_WICK = 0.00012

# The columns of the day that a market can use at all, on an hour's edge: stocks trade between 13:30 and 21:00 UTC.
_WINDOW: dict[Market, tuple[int, int]] = {"forex": (0, 1440), "crypto": (0, 1440), "stocks": (780, 1260)}
# Minutes computed at once: enough to make numpy's overhead small, few enough to keep the working arrays near the cache.
_CHUNK_MINUTES = 65_536
# Of the thin minutes a third lies in runs of 2 to 8 (5 on average), at most one run an hour; the rest are single.
_RUN_SHARE = 1 / 3
_RUN_LENGTH = 5.0


def generated(ticker: str, start_ms: int, end_ms: int, seed: int) -> Bars:
    """Return the generated bars that open in [start, end), in time order.

    Raises KeyError for an unknown ticker.
    """
    if end_ms <= start_ms:
        return Bars.empty()
    of = profile(ticker)
    days = np.arange(start_ms // DAY_MS, (end_ms - 1) // DAY_MS + 1, dtype=np.int64)
    first, end = open_minutes(of.market, days)
    trading = end > first
    days, first, end = days[trading], first[trading], end[trading]
    c0, c1 = _WINDOW[of.market]
    step = max(1, _CHUNK_MINUTES // (c1 - c0))
    parts = [
        _days(of, seed, days[at : at + step], first[at : at + step], end[at : at + step])
        for at in range(0, len(days), step)
    ]
    return Bars.concat(parts).between(start_ms, end_ms)


def _days(of: Profile, seed: int, days: Int64Array, first: Int64Array, end: Int64Array) -> Bars:
    c0, c1 = _WINDOW[of.market]
    columns = np.arange(c0, c1, dtype=np.int64)
    minutes = days[:, None] * DAY_MINUTES + columns
    numbers = draw(key(seed, of.ticker, "minute"), minutes)
    kept = (columns >= first[:, None]) & (columns < end[:, None])
    if of.thin_share:
        kept &= ~_thin(of, seed, days, c0, c1, minutes)
    scale = 10.0**of.decimals
    edges = _edges(of, seed, days, c0, c1) * (of.price * scale)
    bits = fields(numbers)
    unit = 1.0 / 65536
    wick = np.maximum(2.0 * _WICK * of.volatility * of.price * scale, 1.5)

    opened = np.rint(edges[:, :-1]) + (bits[..., 0] % 3).astype(np.float64) - 1.0
    closed = np.rint(edges[:, 1:])
    upper = bits[..., 1] * unit
    lower = bits[..., 2].astype(np.float64) * unit
    high = np.maximum(opened, closed) + np.floor(upper * upper * wick)
    low = np.minimum(opened, closed) - np.floor(lower * lower * wick)
    share = bits[..., 3] * unit
    trades = 4.0 + np.floor(share * share * _activity(of.market)[c0:c1])

    # The four fields are spent; what a reader never compares with each other may share one.
    within = low + (high - low) * (0.25 + 0.5 * (bits[..., 0] * unit))
    volume, vwap = _volume(of.market, trades, lower), _vwap(of.market, within, scale)
    ts = minutes * MINUTE_MS
    whole = bool(kept.all())
    pick = (lambda column: column.reshape(-1)) if whole else (lambda column: column[kept])
    return Bars(
        ts=pick(ts),
        open=pick(opened) / scale,
        high=pick(high) / scale,
        low=pick(low) / scale,
        close=pick(closed) / scale,
        volume=pick(volume),
        vwap=pick(vwap),
        trades=pick(trades).astype(np.int64),
    )


def _edges(of: Profile, seed: int, days: Int64Array, c0: int, c1: int) -> FloatArray:
    """Return the price factor at every minute's edge of the columns c0 to c1: (days, c1 - c0 + 1)."""
    level = 1.0 + of.volatility * (_coarse(of, seed, days))
    following = 1.0 + of.volatility * (_coarse(of, seed, days + 1))
    at = np.arange(c0, c1 + 1, dtype=np.int64)
    factor = level[:, None] + (following - level)[:, None] * (at / DAY_MINUTES)
    for period, amplitude in _MINUTE_LAYERS:
        per_day = DAY_MINUTES // period
        # One lattice point past the last edge, so that every edge lies between two.
        k0, k1 = c0 // period, c1 // period + (period > 1)
        lattice = days[:, None] * per_day + np.arange(k0, k1 + 1, dtype=np.int64)
        points = signed(key(seed, of.ticker, "layer", period), lattice) * (amplitude * of.volatility)
        if period == 1:
            factor += points
            continue
        weights = np.arange(period, dtype=np.float64) / period
        between = points[:, :-1, None] + (points[:, 1:] - points[:, :-1])[:, :, None] * weights
        factor += between.reshape(len(days), -1)[:, c0 - k0 * period : c1 - k0 * period + 1]
    return factor


def _coarse(of: Profile, seed: int, days: Int64Array) -> FloatArray:
    total = np.zeros(len(days))
    for period, amplitude in _DAY_LAYERS:
        lattice = days // period
        weight = (days - lattice * period) / period
        weight = weight * weight * (3.0 - 2.0 * weight)
        stream = key(seed, of.ticker, "days", period)
        here, there = signed(stream, lattice), signed(stream, lattice + 1)
        total += (here + (there - here) * weight) * amplitude
    return total


def _thin(of: Profile, seed: int, days: Int64Array, c0: int, c1: int, minutes: Int64Array) -> np.ndarray:
    single = int(of.thin_share * (1 - _RUN_SHARE) * 2**32)
    numbers: UInt64Array = draw(key(seed, of.ticker, "thin"), minutes)
    thin = (numbers >> np.uint64(32)) < np.uint64(single)
    hours = days[:, None] * 24 + np.arange(c0 // 60, c1 // 60, dtype=np.int64)
    drawn = draw(key(seed, of.ticker, "run"), hours)
    begins = (drawn >> np.uint64(32)) < np.uint64(int(of.thin_share * _RUN_SHARE * 60 / _RUN_LENGTH * 2**32))
    for row, column in zip(*np.nonzero(begins), strict=True):
        bits = int(drawn[row, column])
        start = int(column) * 60 + bits % 52
        thin[row, start : start + 2 + (bits >> 8) % 7] = True
    return thin


@lru_cache(maxsize=3)
def _activity(market: Market) -> FloatArray:
    """Return the span of trades or quotes a minute over the UTC day: busiest while Europe and America trade."""
    minute = np.arange(DAY_MINUTES, dtype=np.float64)
    bump = np.maximum(0.0, 1.0 - np.abs(minute - 870.0) / 480.0)
    base, peak = {"forex": (40.0, 160.0), "crypto": (60.0, 60.0), "stocks": (150.0, 150.0)}[market]
    return base + peak * bump


def _volume(market: Market, trades: FloatArray, share: FloatArray) -> FloatArray:
    if market == "forex":
        return trades
    if market == "stocks":
        return np.floor(trades * (20.0 + 180.0 * share))
    return np.rint(trades * (0.002 + 0.05 * share) * 1e6) / 1e6


def _vwap(market: Market, within: FloatArray, scale: float) -> FloatArray:
    # The vendor gives two decimals more than a trade's price; a quote's average keeps the quote's own.
    return np.rint(within) / scale if market == "forex" else np.rint(within * 100.0) / (scale * 100.0)

"""The vendor's own aggregation, in numpy: independent of the product's, so that the one can be held against the other.

Windows are left-closed and left-labelled and lie on the grid that counts from 1970-01-01 00:00 on the market's clock:
UTC for forex and crypto, New York for stocks. Days start at that clock's midnight, weeks on Sunday (multiples count
from Sunday 1970-01-04), months, quarters and years on the first of the month. A window that holds no minute has no bar.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from market_pipeline.simulator.bars import Bars
from market_pipeline.simulator.hashing import Int64Array
from market_pipeline.simulator.sessions import DAY_MS, MINUTE_MS, local_to_utc_ms, utc_to_local_ms
from market_pipeline.simulator.tickers import Market

Timespan = Literal["second", "minute", "hour", "day", "week", "month", "quarter", "year"]
TIMESPANS: tuple[Timespan, ...] = get_args(Timespan)

_FIXED_MS: dict[str, int] = {"second": 1_000, "minute": MINUTE_MS, "hour": 60 * MINUTE_MS}
_DAYS = {"day": 1, "week": 7}
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_ROUNDABLE = 1e6
_FIRST_SUNDAY = 3  # 1970-01-04, in days since 1970-01-01


def fold(bars: Bars, multiplier: int, timespan: Timespan, market: Market) -> Bars:
    """Fold finer bars into windows of `multiplier` timespans.

    Open is the first, close the last, volume and trades the sums (volume to eight decimals while below a million), vwap
    the average by volume, to six decimals.
    """
    if not len(bars):
        return bars
    start = window_starts(bars.ts, multiplier, timespan, market)
    at = np.flatnonzero(np.diff(start, prepend=start[0] - 1))
    if len(at) == len(bars):
        return bars.with_columns(ts=start)
    last = np.append(at[1:], len(start)) - 1
    volume = np.add.reduceat(bars.volume, at)
    paid = np.add.reduceat(bars.vwap * bars.volume, at)
    return Bars(
        ts=start[at],
        open=bars.open[at],
        high=np.maximum.reduceat(bars.high, at),
        low=np.minimum.reduceat(bars.low, at),
        close=bars.close[last],
        # Eight decimals of a crypto volume are meant; on a large sum the rounding itself would do harm.
        volume=np.where(volume < _ROUNDABLE, volume.round(8), volume),
        vwap=np.divide(paid, volume, out=bars.vwap[at], where=volume > 0).round(6),
        trades=np.add.reduceat(bars.trades, at),
    )


def window_starts(ts: Int64Array, multiplier: int, timespan: Timespan, market: Market) -> Int64Array:
    """Return, for each instant (epoch ms), the start of its window (epoch ms)."""
    if market != "stocks":
        return _floor(ts, multiplier, timespan)
    local = utc_to_local_ms(ts)
    floored = _floor(local, multiplier, timespan)
    if timespan in _FIXED_MS:
        # Within a day the clock's offset is that of the bar itself; no session spans a change of the clock.
        return floored - (local - ts)
    return _back_to_utc(floored)


def window_end(start_ms: int, multiplier: int, timespan: Timespan, market: Market) -> int:
    """Return the end (epoch ms, exclusive) of the window that starts at the instant."""
    if timespan in _FIXED_MS:
        return start_ms + multiplier * _FIXED_MS[timespan]
    start = np.array([start_ms])
    local = utc_to_local_ms(start) if market == "stocks" else start
    if timespan in _DAYS:
        end = local + multiplier * _DAYS[timespan] * DAY_MS
    else:
        months = (local // DAY_MS).astype("datetime64[D]").astype("datetime64[M]") + multiplier * _MONTHS[timespan]
        end = months.astype("datetime64[D]").astype(np.int64) * DAY_MS
    return int((_back_to_utc(end) if market == "stocks" else end)[0])


def _floor(ts: Int64Array, multiplier: int, timespan: Timespan) -> Int64Array:
    if timespan in _FIXED_MS:
        length = multiplier * _FIXED_MS[timespan]
        return ts // length * length
    days = ts // DAY_MS
    if timespan in _DAYS:
        length = multiplier * _DAYS[timespan]
        origin = _FIRST_SUNDAY if timespan == "week" else 0
        return ((days - origin) // length * length + origin) * DAY_MS
    length = multiplier * _MONTHS[timespan]
    months = days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    return (months // length * length).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) * DAY_MS


def _back_to_utc(local: Int64Array) -> Int64Array:
    # Many bars share few windows: convert each once.
    distinct, of = np.unique(local, return_inverse=True)
    return local_to_utc_ms(distinct)[of]

"""Reduce runs of sorted rows to one row each: what every fold is made of.

A run is given by its first row (`starts`); it ends where the next begins. What comes out depends on nothing but the
run's own rows: not on what else is in the frame, on threads or on vector width. So two producers of one bar agree to
the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SHORT = 64  # rows: shorter runs are summed side by side, longer ones each on its own
_DIGITS = 15  # significant decimal digits that survive a double


@dataclass(frozen=True, slots=True)
class BarColumns:
    """Hold bars as columns of equal length, sorted by time; a null vwap is NaN."""

    ts: Ints  # epoch ms
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    vwap: Floats
    trades: Ints


def run_starts(*keys: NDArray[np.generic]) -> Ints:
    """Return the first row of each run of rows with equal keys."""
    if len(keys[0]) == 0:
        return np.empty(0, dtype=np.int64)
    changes = np.zeros(len(keys[0]), dtype=bool)
    changes[0] = True
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changes)


def sums(values: Floats, starts: Ints) -> Floats:
    """Return the sum of each run, rounded once: the errors of the additions are carried along (Knuth's TwoSum)."""
    ends = np.append(starts[1:], len(values))
    lengths = ends - starts
    total = values[starts]
    error = np.zeros_like(total)
    for place in range(1, min(int(lengths.max(initial=0)), _SHORT)):
        longer = np.flatnonzero(lengths > place)
        everywhere = len(longer) == len(starts)
        so_far = total if everywhere else total[longer]
        value = values[starts + place] if everywhere else values[starts[longer] + place]
        added = so_far + value
        part = added - so_far
        lost = (so_far - (added - part)) + (value - part)
        if everywhere:
            total, error = added, error + lost
        else:
            total[longer] = added
            error[longer] += lost
    total += error
    for run in np.flatnonzero(lengths > _SHORT):
        total[run] = math.fsum(values[starts[run] : ends[run]].tolist())
    return total


def volume_sums(volumes: Floats, starts: Ints) -> Floats:
    """Return the sum of each run of volumes as the double that is nearest to the decimal sum.

    Exchanges state and add volumes in decimals. Adding their doubles misses the double of the decimal sum in the last
    bit, in about a third of real 5m windows, and the miss depends on the grouping: 1m → 1h differs from 1m → 5m → 1h.
    A decimal of up to 15 significant digits survives a double, so rounding to 15 finds it again; where that would move
    the sum by more than the volumes' own rounding can have, it was no such decimal and stays what it is.
    """
    total = sums(volumes, starts)
    with np.errstate(divide="ignore"):
        decimals = _DIGITS - 1 - np.floor(np.log10(np.abs(total)))
    # powers of ten up to 22 are exact in a double; a sum of 15 digits before the point has no decimals to round
    scale = 10.0 ** np.where((decimals > 0) & (decimals <= 22), decimals, 0.0)
    rounded = np.rint(total * scale) / scale
    alone = np.diff(starts, append=len(volumes)) == 1
    near = (np.abs(rounded - total) <= 2 * np.spacing(total)) & (scale > 1) & ~alone
    return np.where(near, rounded, total)


def reduce_bars(bars: BarColumns, starts: Ints, opens_at: Ints) -> BarColumns:
    """Fold each run of bars into one bar that opens at `opens_at`.

    Open of the first, close of the last, highest high, lowest low, volumes and trades summed. The vwap is the mean of
    the vwaps weighted by volume over bars with a volume; NaN where such a bar has none, or no bar has a volume.
    """
    if len(starts) == 0:
        return BarColumns(*(getattr(bars, name)[:0] for name in BarColumns.__slots__))
    lasts = np.append(starts[1:], len(bars.ts)) - 1
    volume = volume_sums(bars.volume, starts)
    return BarColumns(
        ts=opens_at,
        open=bars.open[starts],
        high=np.maximum.reduceat(bars.high, starts),
        low=np.minimum.reduceat(bars.low, starts),
        close=bars.close[lasts],
        volume=volume,
        vwap=_vwap(bars, starts, volume),
        trades=np.add.reduceat(bars.trades, starts),
    )


def mean_price(turnover: Floats, volume: Floats, lowest: Floats, highest: Floats) -> Floats:
    """Divide turnover by volume; NaN without a volume. Rounding must not carry a mean outside of [lowest, highest]."""
    mean = np.full(len(turnover), np.nan)
    np.divide(turnover, volume, out=mean, where=volume > 0)
    return np.clip(mean, lowest, highest)


def _vwap(bars: BarColumns, starts: Ints, volume: Floats) -> Floats:
    traded = bars.volume > 0
    if np.isnan(bars.vwap).all():
        return np.full(len(starts), np.nan)
    if traded.all():
        weighed, lowest, highest = bars.vwap * bars.volume, bars.vwap, bars.vwap
    else:
        # a bar without a volume weighs nothing, whatever its vwap
        weighed = np.where(traded, bars.vwap * bars.volume, 0.0)
        lowest, highest = np.where(traded, bars.vwap, np.inf), np.where(traded, bars.vwap, -np.inf)
    lowest, highest = np.minimum.reduceat(lowest, starts), np.maximum.reduceat(highest, starts)
    none = ~(volume > 0)
    return mean_price(sums(weighed, starts), volume, np.where(none, -np.inf, lowest), np.where(none, np.inf, highest))

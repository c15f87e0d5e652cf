"""Stretches in which something else takes the place of a ticker's truth: recorded ticks, or a load of made ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from market_pipeline.simulator.bars import Bars
from market_pipeline.simulator.hashing import FloatArray, Int64Array, draw, key, signed
from market_pipeline.simulator.sessions import MINUTE_MS
from market_pipeline.simulator.tickers import market_of, profile
from market_pipeline.simulator.ticks import Ticks, fold_ticks, joined, ticks_of
from market_pipeline.simulator.truth import minute_bars, tick_bundle

FOREVER = 1 << 62
_LAYERS = ((60, 1e-3), (0, 1e-4))  # of a load's price: (seconds for which a draw holds, amplitude)


@dataclass(frozen=True, slots=True)
class Recording:
    """Hold recorded ticks that stand for all of [start, end), whole minutes in epoch ms."""

    start: int
    end: int
    held: Ticks

    def ticks(self, start_ms: int, end_ms: int) -> Ticks:
        """Return the ticks of [start, end)."""
        return self.held.between(max(start_ms, self.start), min(end_ms, self.end))


@dataclass(frozen=True, slots=True)
class Load:
    """Make `per_second` ticks a second in [start, end), open market or not; a tick depends on ticker and time alone."""

    ticker: str
    per_second: int
    start: int
    end: int = FOREVER

    def ticks(self, start_ms: int, end_ms: int) -> Ticks:
        """Return the ticks of [start, end): evenly spaced, each ticker a little beside the others."""
        of, stream = profile(self.ticker), key("load", self.ticker)
        rate, phase = self.per_second, stream % max(1, 1000 // self.per_second)
        first, last = max(start_ms, self.start) - phase, min(end_ms, self.end) - phase
        index = np.arange(-(-first * rate // 1000), -(-last * rate // 1000), dtype=np.int64)
        ts = index * 1000 // rate + phase
        number = index + (phase - ts // MINUTE_MS * MINUTE_MS) * rate // 1000
        price = np.ones(len(index))
        for seconds, amplitude in _LAYERS:
            price += amplitude * signed(stream + seconds, index // (seconds * rate) if seconds else index)
        price = (price * of.price).round(of.decimals)
        drawn = (draw(stream + 1, index) % np.uint64(100)).astype(np.float64)
        nothing = np.full(len(index), np.nan)
        if of.market == "forex":
            ask = (price + (1.0 + drawn % 10) * 10.0**-of.decimals).round(of.decimals)
            return Ticks(ts, number, price, ask, nothing)
        size = drawn + 1.0 if of.market == "stocks" else (drawn + 1.0) / 1000
        return Ticks(ts, number, price, nothing, size)


class PatchedTruth:
    """Be the truth of one seed with patches over it, later ones over earlier. Bars fold from the patch's own ticks.

    The patches of a ticker are replaced as a whole, so many threads may read while one changes them.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._patches: dict[str, tuple[Recording | Load, ...]] = {}

    def record(self, ticker: str, path: Path) -> Recording:
        """Let recorded ticks stand for the time from their first to their last minute, and return them.

        The parquet file has ts (Datetime, UTC) and either bid and ask or price and size. Raises ValueError for another
        file, KeyError for an unknown ticker.
        """
        recording = read_recording(ticker, path)
        self._patches[ticker] = (*self._patches.get(ticker, ()), recording)
        return recording

    def load(self, tickers: Iterable[str], per_second: int, now_ms: int) -> None:
        """Start a load at `now` in place of any that runs; with no tickers or a rate of 0 there is none any more."""
        for ticker, patches in self._patches.items():
            self._patches[ticker] = tuple(
                replace(p, end=now_ms) if isinstance(p, Load) and p.end == FOREVER else p for p in patches
            )
        if per_second:
            for ticker in tickers:
                profile(ticker)
                self._patches[ticker] = (*self._patches.get(ticker, ()), Load(ticker, per_second, now_ms))

    def clear(self) -> None:
        """Remove every patch."""
        self._patches = {}

    def tickers(self) -> list[str]:
        """Return the tickers that have a patch."""
        return list(self._patches)

    def loaded(self, ticker: str, at_ms: int) -> bool:
        """Tell whether a load makes the ticker's ticks at the instant."""
        return any(isinstance(p, Load) and p.start <= at_ms < p.end for p in self._patches.get(ticker, ()))

    def minute_bars(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        """Return the minute bars that open in [start, end)."""
        bars = minute_bars(ticker, start_ms, end_ms, self._seed)
        for patch in self._patches.get(ticker, ()):
            first = max(-(-start_ms // MINUTE_MS), patch.start // MINUTE_MS) * MINUTE_MS
            last = -(-min(end_ms, patch.end) // MINUTE_MS) * MINUTE_MS
            if first < last:
                folded = fold_ticks(self.tick_bundle(ticker, first, last), MINUTE_MS)
                bars = Bars.concat([bars.between(start_ms, first), folded, bars.between(last, end_ms)])
        return bars

    def tick_bundle(self, ticker: str, start_ms: int, end_ms: int) -> Ticks:
        """Return the ticks of [start, end), in time order."""
        patches = self._patches.get(ticker, ())
        if patches and patches[-1].start <= start_ms and end_ms <= patches[-1].end:
            return patches[-1].ticks(start_ms, end_ms)  # a load must not pay for the truth below it
        ticks = tick_bundle(ticker, start_ms, end_ms, self._seed)
        for patch in patches:
            if patch.start < end_ms and start_ms < patch.end:
                inside = patch.ticks(start_ms, end_ms)
                ticks = joined([ticks.between(start_ms, patch.start), inside, ticks.between(patch.end, end_ms)])
        return ticks

    def ticks_of(self, ticker: str, bars: Bars) -> Ticks:
        """Return the ticks that minute bars are made of."""
        patches = self._patches.get(ticker, ())
        patched = np.zeros(len(bars), bool)
        for patch in patches:
            patched |= (bars.ts + MINUTE_MS > patch.start) & (bars.ts < patch.end)
        if not patched.any():
            return ticks_of(ticker, bars, self._seed)
        shown = bars.ts[patched]
        inside = self.tick_bundle(ticker, int(shown[0]), int(shown[-1]) + MINUTE_MS)
        inside = inside.take(np.isin(inside.ts // MINUTE_MS * MINUTE_MS, shown))
        both = joined([ticks_of(ticker, bars.take(~patched), self._seed), inside])
        return both.take(np.argsort(both.ts, kind="stable"))


def read_recording(ticker: str, path: Path) -> Recording:
    """Read recorded ticks; see `PatchedTruth.record`."""
    quotes = market_of(ticker) == "forex"
    profile(ticker)
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as broken:
        raise ValueError(f"{path.name} can't be read: {broken}") from broken
    names = ("bid", "ask") if quotes else ("price", "size")
    if (
        not {"ts", *names} <= set(frame.columns)
        or frame.schema["ts"].base_type() is not pl.Datetime
        or frame.is_empty()
    ):
        raise ValueError(f"{path.name} needs rows of ts (Datetime), {' and '.join(names)}")
    frame = frame.select("ts", *names).drop_nulls().sort("ts", maintain_order=True)
    ts: Int64Array = frame["ts"].dt.epoch("ms").to_numpy()
    value, other = (frame[name].cast(pl.Float64).to_numpy() for name in names)
    minute = ts // MINUTE_MS
    number = np.arange(len(ts)) - np.searchsorted(minute, minute)
    nothing: FloatArray = np.full(len(ts), np.nan)
    ticks = Ticks(ts, number, value, other if quotes else nothing, nothing if quotes else other)
    return Recording(int(minute[0]) * MINUTE_MS, (int(minute[-1]) + 1) * MINUTE_MS, ticks)

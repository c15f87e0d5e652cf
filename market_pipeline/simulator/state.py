"""What the vendor shows at this moment: the truth, with what it restated, withdrew or never had, as of its clock."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from market_pipeline.simulator.bars import Bars
from market_pipeline.simulator.hashing import key, uniform
from market_pipeline.simulator.patches import PatchedTruth, Recording
from market_pipeline.simulator.sessions import MINUTE_MS
from market_pipeline.simulator.tickers import Market, listed, market_of
from market_pipeline.simulator.ticks import Ticks, fold_ticks

SETTLE_MS = 5 * MINUTE_MS
_VALUES = ("open", "high", "low", "close", "volume", "vwap", "trades")
_NEEDED = ("open", "high", "low", "close")


@dataclass
class Overlay:
    """Hold one ticker's deviations from the truth; times in epoch ms, ranges as [start, end)."""

    restated: dict[int, dict[str, float]] = field(default_factory=dict)
    withdrawn: list[tuple[int, int]] = field(default_factory=list)
    removed: list[tuple[int, int]] = field(default_factory=list)


class Clock(NamedTuple):
    """Hold the clock's `now`, the instant `base` to which it was last set (both epoch ms), and how often it was set."""

    now: int
    base: int
    changes: int


class VendorState:
    """Keep the vendor's mutable state; safe for many threads.

    A restated minute has other values from now on. A withdrawn minute was there (and was streamed) and is gone; a
    removed minute the vendor never had, in no stream either. The minute that is running at `now` is shown as the bar of
    its ticks so far. With a `settle` share above zero that share of the bars younger than five minutes still lacks its
    last tick. With a `path` the overlays and unknown tickers outlive the process; recordings and loads don't.
    """

    def __init__(self, seed: int = 0, path: Path | None = None) -> None:
        self.seed = seed
        self._path = path
        self._lock = threading.RLock()
        self._overlays: dict[str, Overlay] = {}
        self._unknown: set[str] = set()
        self._settle_share = 0.0
        self._truth = PatchedTruth(seed)
        self._on_wall_clock, self._speed = True, 0.0
        self._base, self._set_at = int(time.time() * 1000), time.monotonic()
        self._clock_changes = 0
        self.version = 0
        if path is not None and path.exists():
            kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
            self._overlays, self._unknown = kept.overlays, set(kept.unknown)

    # The clock

    def now_ms(self) -> int:
        """Return the vendor's present in epoch ms."""
        return self.clock().now

    def http_date(self) -> str:
        """Return the vendor's present as its servers write it into the header Date: in whole seconds."""
        return formatdate(self.now_ms() // 1000, usegmt=True)

    def clock(self) -> Clock:
        """Return the clock's state."""
        with self._lock:
            if self._on_wall_clock:
                now = int(time.time() * 1000)
            else:
                now = self._base + int((time.monotonic() - self._set_at) * 1000 * self._speed)
            return Clock(now, self._base, self._clock_changes)

    def set_now(self, at_ms: int | None, *, running: bool = False, speed: float = 1.0) -> None:
        """Set the clock to an instant, standing still or running on from it at a speed; None: to the wall clock.

        Raises ValueError for a speed that is not above zero.
        """
        if not 0 < speed <= 1e6:
            raise ValueError("the clock's speed must be above 0 and at most 1000000")
        with self._lock:
            self._clock_changes += 1
            self._on_wall_clock = at_ms is None
            self._base = int(time.time() * 1000) if at_ms is None else at_ms
            self._set_at, self._speed = time.monotonic(), speed if running else 0.0

    def move_now(self, to_ms: int) -> None:
        """Move the clock to an instant and let it stand there: time has passed, nothing was set."""
        with self._lock:
            self._on_wall_clock, self._base, self._speed = False, to_ms, 0.0

    # Deviations from the truth

    def restate(self, ticker: str, minute_ms: int, values: dict[str, float]) -> None:
        """Give a minute other values, for those named; a minute without a bar needs open, high, low and close.

        Raises ValueError for an unknown value, a time within a minute, or a missing one; KeyError for a ticker.
        """
        if minute_ms % MINUTE_MS or set(values) - set(_VALUES) or not values:
            raise ValueError(f"needs the open of a minute and some of {', '.join(_VALUES)}")
        truth = self._truth.minute_bars(ticker, minute_ms, minute_ms + MINUTE_MS)
        with self._lock:
            overlay = self._overlay(ticker)
            merged = {**overlay.restated.get(minute_ms, {}), **values}
            if not len(truth) and set(_NEEDED) - set(merged):
                raise ValueError(f"the minute has no bar: needs {', '.join(_NEEDED)}")
            overlay.restated[minute_ms] = merged
            overlay.withdrawn = _without(overlay.withdrawn, minute_ms, minute_ms + MINUTE_MS)
            self._changed()

    def withdraw(self, ticker: str, start_ms: int, end_ms: int) -> None:
        """Take back the bars of [start, end): they were there, and no answer holds them any more."""
        with self._lock:
            self._overlay(ticker).withdrawn.append((start_ms, end_ms))
            self._changed()

    def remove(self, ticker: str, start_ms: int, end_ms: int) -> None:
        """Make the vendor lack the minutes of [start, end), bars and ticks."""
        with self._lock:
            self._overlay(ticker).removed.append((start_ms, end_ms))
            self._changed()

    def restore(self, ticker: str, start_ms: int, end_ms: int) -> None:
        """Return the minutes of [start, end) to the truth."""
        with self._lock:
            overlay = self._overlay(ticker)
            for minute in [minute for minute in overlay.restated if start_ms <= minute < end_ms]:
                del overlay.restated[minute]
            overlay.withdrawn = _without(overlay.withdrawn, start_ms, end_ms)
            overlay.removed = _without(overlay.removed, start_ms, end_ms)
            self._changed()

    def set_unknown(self, tickers: list[str]) -> None:
        """Make the vendor not know these tickers (and no others than these, beside malformed ones)."""
        with self._lock:
            self._unknown = set(tickers)
            self._changed()

    def set_settle(self, share: float) -> None:
        """Let this share of the bars younger than five minutes be unsettled."""
        with self._lock:
            self._settle_share = share

    def reset(self) -> None:
        """Return to the truth and the wall clock."""
        with self._lock:
            self._overlays, self._unknown, self._settle_share = {}, set(), 0.0
            self._truth.clear()
            self.set_now(None)
            self._changed()

    def record(self, ticker: str, path: Path) -> Recording:
        """Let recorded ticks take the place of the truth (`patches.PatchedTruth.record`)."""
        with self._lock:
            recording = self._truth.record(ticker, path)
            self._changed()
            return recording

    def load(self, tickers: list[str], per_second: int) -> None:
        """Make so many ticks a second of each of these tickers (and no others) from now on; 0 ends it.

        Raises KeyError for an unknown ticker, ValueError for a rate below 0 or above 1,000 a millisecond.
        """
        if not 0 <= per_second <= 1_000_000:
            raise ValueError("the rate must be from 0 to 1000000 ticks a second")
        with self._lock:
            self._truth.load(tickers, per_second, self.now_ms())
            self._changed()

    # What the vendor shows

    def knows(self, ticker: str) -> bool:
        """Tell whether the vendor has the ticker."""
        return market_of(ticker) is not None and ticker not in self._unknown

    def listed(self, market: Market) -> list[str]:
        """Return the tickers that a subscription to all of a market means: the well-known, recorded and loaded ones."""
        patched = [ticker for ticker in self._truth.tickers() if market_of(ticker) == market]
        return [ticker for ticker in dict.fromkeys([*listed(market), *patched]) if self.knows(ticker)]

    def minutes(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        """Return the minute bars of [start, end) as an answer of this moment holds them."""
        now = self.now_ms()
        bars = self._truth.minute_bars(ticker, start_ms, min(end_ms, now + 1))
        bars = self._overlaid(ticker, bars, start_ms, min(end_ms, now + 1))
        running = now // MINUTE_MS * MINUTE_MS
        if not len(bars) or bars.ts[-1] + MINUTE_MS + SETTLE_MS < now:
            return bars
        settled, young, current = (
            bars.between(start_ms, running - SETTLE_MS),
            bars.between(running - SETTLE_MS, running),
            bars.between(running, running + MINUTE_MS),
        )
        so_far = fold_ticks(self._truth.ticks_of(ticker, current).between(running, now + 1), MINUTE_MS)
        return Bars.concat([settled, self._unsettled(ticker, young), so_far])

    def seconds(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        """Return the second bars of [start, end): folds of the ticks of the minutes that the vendor shows."""
        now = self.now_ms()
        first = start_ms // MINUTE_MS * MINUTE_MS
        bars = self._truth.minute_bars(ticker, first, min(end_ms, now + 1))
        bars = self._overlaid(ticker, bars, first, min(end_ms, now + 1))
        ticks = self._truth.ticks_of(ticker, bars).between(start_ms, min(end_ms, now + 1))
        return fold_ticks(ticks, 1_000)

    def ticks(self, ticker: str, start_ms: int, end_ms: int) -> Ticks:
        """Return the quotes or trades of [start, end): all that were streamed, whatever became of their bars."""
        return self.coming_ticks(ticker, start_ms, min(end_ms, self.now_ms() + 1))

    def coming_ticks(self, ticker: str, start_ms: int, end_ms: int) -> Ticks:
        """Return the quotes or trades of [start, end), those that the clock has yet to reach included."""
        ticks = self._truth.tick_bundle(ticker, start_ms, end_ms)
        with self._lock:
            removed = list(self._overlays[ticker].removed) if ticker in self._overlays else []
        return ticks.take(~_inside(ticks.ts, removed)) if removed else ticks

    def loaded(self, ticker: str) -> bool:
        """Tell whether a load makes the ticker's ticks now."""
        return self._truth.loaded(ticker, self.now_ms())

    def _overlaid(self, ticker: str, bars: Bars, start_ms: int, end_ms: int) -> Bars:
        with self._lock:
            overlay = self._overlays.get(ticker)
            if overlay is None:
                return bars
            restated = sorted((at, dict(v)) for at, v in overlay.restated.items() if start_ms <= at < end_ms)
            absent = [*overlay.withdrawn, *overlay.removed]
        if restated:
            bars = _restated(bars, restated)
        return bars.take(~_inside(bars.ts, absent)) if absent else bars

    def _unsettled(self, ticker: str, young: Bars) -> Bars:
        share = self._settle_share
        if not share or not len(young):
            return young
        late = (uniform(key(self.seed, ticker, "settle"), young.ts) < share) & (young.trades > 1)
        ticks = self._truth.ticks_of(ticker, young)
        last = np.append(np.flatnonzero(np.diff(ticks.ts // MINUTE_MS)), len(ticks) - 1)
        kept = np.ones(len(ticks), bool)
        kept[last[late]] = False
        folded = fold_ticks(ticks.take(kept), MINUTE_MS)
        return young.with_columns(
            **{name: np.where(late, column, getattr(young, name)) for name, column in folded.columns().items()}
        )

    def _overlay(self, ticker: str) -> Overlay:
        if market_of(ticker) is None:
            raise KeyError(f"unknown ticker {ticker!r}")
        return self._overlays.setdefault(ticker, Overlay())

    def _changed(self) -> None:
        self.version += 1
        if self._path is None:
            return
        kept = {"overlays": {t: asdict(o) for t, o in self._overlays.items()}, "unknown": sorted(self._unknown)}
        beside = self._path.with_name(self._path.name + ".new")
        beside.write_bytes(msgspec.json.encode(kept))
        os.replace(beside, self._path)


class _Kept(msgspec.Struct):
    overlays: dict[str, Overlay]
    unknown: list[str]


def _inside(ts: np.ndarray, ranges: list[tuple[int, int]]) -> np.ndarray:
    inside = np.zeros(len(ts), bool)
    for start, end in ranges:
        inside[slice(*np.searchsorted(ts, (start, end)))] = True
    return inside


def _without(ranges: list[tuple[int, int]], start_ms: int, end_ms: int) -> list[tuple[int, int]]:
    """Return the ranges less [start, end)."""
    left = [(a, min(b, start_ms)) for a, b in ranges] + [(max(a, end_ms), b) for a, b in ranges]
    return sorted((a, b) for a, b in left if a < b)


def _restated(bars: Bars, restated: list[tuple[int, dict[str, float]]]) -> Bars:
    columns = {name: column.copy() for name, column in bars.columns().items()}
    for at, values in restated:
        row = int(np.searchsorted(columns["ts"], at))
        if row == len(columns["ts"]) or columns["ts"][row] != at:
            blank = {"ts": at, "volume": 4.0, "vwap": values["close"], "trades": 4}
            columns = {
                name: np.insert(column, row, blank.get(name, values.get(name, 0))) for name, column in columns.items()
            }
        for name, value in values.items():
            columns[name][row] = value
    return Bars(**columns)

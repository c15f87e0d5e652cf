"""What the vendor shows at this moment: the truth, with what it restated, withdrew or never had, as of its clock."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from market_pipeline.simulator.bars import Bars
from market_pipeline.simulator.hashing import key, uniform
from market_pipeline.simulator.sessions import MINUTE_MS
from market_pipeline.simulator.tickers import market_of
from market_pipeline.simulator.ticks import Ticks, fold_ticks, ticks_of
from market_pipeline.simulator.truth import minute_bars, tick_bundle

SETTLE_MS = 5 * MINUTE_MS
_VALUES = ("open", "high", "low", "close", "volume", "vwap", "trades")
_NEEDED = ("open", "high", "low", "close")


@dataclass
class Overlay:
    """Hold one ticker's deviations from the truth; times in epoch ms, ranges as [start, end)."""

    restated: dict[int, dict[str, float]] = field(default_factory=dict)
    withdrawn: list[tuple[int, int]] = field(default_factory=list)
    removed: list[tuple[int, int]] = field(default_factory=list)


class VendorState:
    """Keep the vendor's mutable state; safe for many threads.

    A restated minute has other values from now on. A withdrawn minute was there (and was streamed) and is gone; a
    removed minute the vendor never had, in no stream either. The minute that is running at `now` is shown as the bar of
    its ticks so far. With a `settle` share above zero that share of the bars younger than five minutes still lacks its
    last tick. With a `path` the overlays and unknown tickers outlive the process.
    """

    def __init__(self, seed: int = 0, path: Path | None = None) -> None:
        self.seed = seed
        self._path = path
        self._lock = threading.RLock()
        self._overlays: dict[str, Overlay] = {}
        self._unknown: set[str] = set()
        self._settle_share = 0.0
        self._now: tuple[int, float | None] | None = None
        if path is not None and path.exists():
            kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
            self._overlays, self._unknown = kept.overlays, set(kept.unknown)

    # The clock

    def now_ms(self) -> int:
        """Return the vendor's present in epoch ms."""
        with self._lock:
            if self._now is None:
                return int(time.time() * 1000)
            at, since = self._now
            return at if since is None else at + int((time.monotonic() - since) * 1000)

    def set_now(self, at_ms: int | None, *, running: bool = False) -> None:
        """Set the clock to an instant, standing still or running on from it; None returns to the wall clock."""
        with self._lock:
            self._now = None if at_ms is None else (at_ms, time.monotonic() if running else None)

    # Deviations from the truth

    def restate(self, ticker: str, minute_ms: int, values: dict[str, float]) -> None:
        """Give a minute other values, for those named; a minute without a bar needs open, high, low and close.

        Raises ValueError for an unknown value, a time within a minute, or a missing one; KeyError for a ticker.
        """
        if minute_ms % MINUTE_MS or set(values) - set(_VALUES) or not values:
            raise ValueError(f"needs the open of a minute and some of {', '.join(_VALUES)}")
        truth = minute_bars(ticker, minute_ms, minute_ms + MINUTE_MS, self.seed)
        with self._lock:
            overlay = self._overlay(ticker)
            merged = {**overlay.restated.get(minute_ms, {}), **values}
            if not len(truth) and set(_NEEDED) - set(merged):
                raise ValueError(f"the minute has no bar: needs {', '.join(_NEEDED)}")
            overlay.restated[minute_ms] = merged
            overlay.withdrawn = _without(overlay.withdrawn, minute_ms, minute_ms + MINUTE_MS)
            self._save()

    def withdraw(self, ticker: str, start_ms: int, end_ms: int) -> None:
        """Take back the bars of [start, end): they were there, and no answer holds them any more."""
        with self._lock:
            self._overlay(ticker).withdrawn.append((start_ms, end_ms))
            self._save()

    def remove(self, ticker: str, start_ms: int, end_ms: int) -> None:
        """Make the vendor lack the minutes of [start, end), bars and ticks."""
        with self._lock:
            self._overlay(ticker).removed.append((start_ms, end_ms))
            self._save()

    def restore(self, ticker: str, start_ms: int, end_ms: int) -> None:
        """Return the minutes of [start, end) to the truth."""
        with self._lock:
            overlay = self._overlay(ticker)
            for minute in [minute for minute in overlay.restated if start_ms <= minute < end_ms]:
                del overlay.restated[minute]
            overlay.withdrawn = _without(overlay.withdrawn, start_ms, end_ms)
            overlay.removed = _without(overlay.removed, start_ms, end_ms)
            self._save()

    def set_unknown(self, tickers: list[str]) -> None:
        """Make the vendor not know these tickers (and no others than these, beside malformed ones)."""
        with self._lock:
            self._unknown = set(tickers)
            self._save()

    def set_settle(self, share: float) -> None:
        """Let this share of the bars younger than five minutes be unsettled."""
        with self._lock:
            self._settle_share = share

    def reset(self) -> None:
        """Return to the truth and the wall clock."""
        with self._lock:
            self._overlays, self._unknown, self._settle_share, self._now = {}, set(), 0.0, None
            self._save()

    # What the vendor shows

    def knows(self, ticker: str) -> bool:
        """Tell whether the vendor has the ticker."""
        return market_of(ticker) is not None and ticker not in self._unknown

    def minutes(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        """Return the minute bars of [start, end) as an answer of this moment holds them."""
        now = self.now_ms()
        bars = minute_bars(ticker, start_ms, min(end_ms, now + 1), self.seed)
        bars = self._overlaid(ticker, bars, start_ms, min(end_ms, now + 1))
        running = now // MINUTE_MS * MINUTE_MS
        if not len(bars) or bars.ts[-1] + MINUTE_MS + SETTLE_MS < now:
            return bars
        settled, young, current = (
            bars.between(start_ms, running - SETTLE_MS),
            bars.between(running - SETTLE_MS, running),
            bars.between(running, running + MINUTE_MS),
        )
        so_far = fold_ticks(ticks_of(ticker, current, self.seed).between(running, now + 1), MINUTE_MS)
        return Bars.concat([settled, self._unsettled(ticker, young), so_far])

    def seconds(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        """Return the second bars of [start, end): folds of the ticks of the minutes that the vendor shows."""
        now = self.now_ms()
        first = start_ms // MINUTE_MS * MINUTE_MS
        bars = minute_bars(ticker, first, min(end_ms, now + 1), self.seed)
        bars = self._overlaid(ticker, bars, first, min(end_ms, now + 1))
        ticks = ticks_of(ticker, bars, self.seed).between(start_ms, min(end_ms, now + 1))
        return fold_ticks(ticks, 1_000)

    def ticks(self, ticker: str, start_ms: int, end_ms: int) -> Ticks:
        """Return the quotes or trades of [start, end): all that were streamed, whatever became of their bars."""
        ticks = tick_bundle(ticker, start_ms, min(end_ms, self.now_ms() + 1), self.seed)
        with self._lock:
            removed = list(self._overlays[ticker].removed) if ticker in self._overlays else []
        return ticks.take(~_inside(ticks.ts, removed)) if removed else ticks

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
        ticks = ticks_of(ticker, young, self.seed)
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

    def _save(self) -> None:
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

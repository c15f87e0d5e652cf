"""Progress of a long run: what is done, how fast, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One look at a run under way. `seconds_left` is None until a rate is known."""

    phase: str
    symbol: str
    done_minutes: int
    total_minutes: int
    rows: int
    rows_per_second: float
    seconds_left: float | None

    def __str__(self) -> str:
        share = self.done_minutes / self.total_minutes if self.total_minutes else 1.0
        left = "" if self.seconds_left is None else f", {self.seconds_left:.0f} s left"
        return f"{self.phase} {self.symbol}: {share:.0%}, {self.rows:,} rows, {self.rows_per_second:,.0f} rows/s{left}"


class Meter:
    """Count what is done and report it at most every `every` seconds."""

    def __init__(
        self, phase: str, total_minutes: int, report: Callable[[Progress], None] | None, *, every: float = 5.0
    ) -> None:
        self._phase, self._total, self._report, self._every = phase, total_minutes, report, every
        self._started = self._last = time.monotonic()
        self._done = self._rows = 0

    def advance(self, symbol: str, *, minutes: int = 0, rows: int = 0) -> None:
        """Count minutes of the range as done and rows as verified; report when it is time."""
        self._done += minutes
        self._rows += rows
        now = time.monotonic()
        if self._report is None or (now - self._last < self._every and self._done < self._total):
            return
        self._last = now
        passed = now - self._started
        left = passed * (self._total - self._done) / self._done if self._done else None
        self._report(
            Progress(self._phase, symbol, self._done, self._total, self._rows, self._rows / max(passed, 1e-9), left)
        )

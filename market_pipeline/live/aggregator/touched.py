"""Which windows of 5m and more have to be derived, and when: pure bookkeeping."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from market_pipeline.market.timeframes import DERIVED, ceil, floor, from_ms, timeframe, to_ms

Window = tuple[str, int]
"""Timeframe and open (epoch ms)."""


class Touched:
    """Keep the windows that a changed minute lies in, by symbol, until they are derived.

    A window is due once it is over and `wait` has passed, so that its last minute has had the time to arrive.
    """

    def __init__(self, wait: timedelta) -> None:
        self._wait_ms = wait // timedelta(milliseconds=1)
        self._windows: dict[str, dict[Window, int]] = {}  # -> epoch ms at which it is due

    def minutes(self, symbol: str, opens: Iterable[datetime]) -> None:
        """Touch the windows of minutes (their opens, UTC) of a symbol."""
        for opened in opens:
            self.range(symbol, opened, opened + timedelta(minutes=1))

    def range(self, symbol: str, start: datetime, end: datetime) -> None:
        """Touch every window that shares a moment with [start, end), UTC."""
        windows = self._windows.setdefault(symbol, {})
        for code in DERIVED:
            length = timeframe(code).milliseconds
            for opened in range(to_ms(floor(start, code)), to_ms(ceil(end, code)), length):
                windows[code, opened] = self._due_at(code, opened)

    def take(self, symbol: str, now: datetime) -> list[Window]:
        """Return the windows of a symbol that are due, and forget them: what is touched from here on counts anew."""
        windows, at = self._windows.get(symbol, {}), to_ms(now)
        due = [window for window, due in windows.items() if due <= at]
        for window in due:
            del windows[window]
        return due

    def put_back(self, symbol: str, windows: Iterable[Window]) -> None:
        """Keep windows that could not be derived."""
        for code, opened in windows:
            self._windows.setdefault(symbol, {})[code, opened] = self._due_at(code, opened)

    def waiting(self, now: datetime) -> tuple[int, float]:
        """Return how many windows of all symbols are due, and for how many seconds the oldest has been."""
        at = to_ms(now)
        due = [due for windows in self._windows.values() for due in windows.values() if due <= at]
        return len(due), (at - min(due)) / 1000 if due else 0.0

    def _due_at(self, code: str, opened: int) -> int:
        return opened + timeframe(code).milliseconds + self._wait_ms


def intervals(windows: Iterable[Window]) -> list[tuple[datetime, datetime]]:
    """Return the time that the windows cover, in their order; they may overlap."""
    return sorted((from_ms(opened), from_ms(opened) + timeframe(code).length) for code, opened in windows)

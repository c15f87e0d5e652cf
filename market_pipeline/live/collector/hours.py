"""Market hours that may be asked for many times a second."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import timedelta

from market_pipeline.market.sessions import calendar
from market_pipeline.market.timeframes import DAY_MS, from_ms

_AHEAD = timedelta(days=8)


class MarketHours:
    """Know whether any of some markets is open; looks a week ahead and remembers that."""

    def __init__(self, calendars: Iterable[str]) -> None:
        self._calendars = [calendar(name) for name in dict.fromkeys(calendars)]
        self._from_ms = self._to_ms = 0
        self._sessions: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def is_open(self, at_ms: int, *, after_ms: int = 0) -> bool:
        """Say whether one of the markets is open at this moment, or was at most `after_ms` before."""
        if not self._from_ms <= at_ms - after_ms <= at_ms < self._to_ms:
            self._look_ahead(at_ms)
        return any(opened <= at_ms < closed + after_ms for opened, closed in self._sessions)

    def _look_ahead(self, at_ms: int) -> None:
        start, end = from_ms(at_ms - DAY_MS), from_ms(at_ms) + _AHEAD
        sessions: list[tuple[int, int]] = []
        for each in self._calendars:
            opens, closes = each.session_bounds(start, end)
            sessions += zip(opens.tolist(), closes.tolist(), strict=True)
        with self._lock:
            self._sessions = sessions
            self._from_ms, self._to_ms = at_ms - DAY_MS, at_ms + (_AHEAD // timedelta(milliseconds=1))

"""When the silence of a stream is suspicious."""

from __future__ import annotations

import time
from collections.abc import Callable

# A thin symbol may be silent for minutes, and reconnecting for ever would lose what it has.
MOST_PATIENCE = 32


class SilenceWatch:
    """Judge silence in market hours; seconds of the monotonic clock.

    A stream that is silent for `silence_s` while a market of it is open is given up. If the new connection is silent
    as well, the market is thin, not the connection dead: the bound doubles, up to 32 times. If data comes at once,
    within `soon_s`, the reconnect had helped, and the bound is `silence_s` again.
    """

    def __init__(
        self,
        silence_s: float,
        is_open: Callable[[], bool],
        *,
        soon_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._silence_s = silence_s
        self._is_open = is_open
        self._soon_s = soon_s
        self._clock = clock
        self._patience = 1
        self._given_up = False
        self._opened_at = self._quiet_since = clock()

    @property
    def bound_s(self) -> float:
        """How long a silence is borne now."""
        return self._silence_s * self._patience

    def opened(self) -> None:
        """Start anew: a connection has been opened."""
        self._opened_at = self._quiet_since = self._clock()

    def data(self) -> None:
        """Note that data came."""
        self._quiet_since = self._clock()
        if self._given_up:
            self._given_up = False
            if self._quiet_since - self._opened_at <= self._soon_s:
                self._patience = 1
            else:
                self._patience = min(MOST_PATIENCE, self._patience * 2)

    def too_silent(self) -> bool:
        """Say whether the connection is to be given up; silence counts from when the market opened."""
        now = self._clock()
        if not self._is_open():
            self._quiet_since = now
            return False
        if now - self._quiet_since < self.bound_s:
            return False
        if self._given_up:
            self._patience = min(MOST_PATIENCE, self._patience * 2)
        self._given_up = True
        return True

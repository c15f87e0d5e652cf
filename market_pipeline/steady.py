"""Time that goes on evenly, whatever becomes of the machine's clock."""

from __future__ import annotations

import math
import time

# Where it is there, the time for which a machine slept counts as well.
_SOURCE = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def passed_s() -> float:
    """Return the seconds that have passed since some moment."""
    return time.clock_gettime(_SOURCE)


class SteadyClock:
    """A clock that goes on with the time that passes from what it was set to; epoch ms.

    The machine's clock may be set at any time: by NTP after a start, by a person, by a host that moves a machine. Who
    proves by a clock that an hour was heard must not have the hour made by a leap of it.
    """

    def __init__(self, now_ms: int) -> None:
        """Set the clock."""
        self.set(now_ms)

    def set(self, now_ms: int, at: float | None = None) -> None:
        """Set the clock anew; `at`: the `passed_s` at which it was `now_ms`, if not now."""
        self._set_ms, self._set_at = now_ms, passed_s() if at is None else at

    def __call__(self) -> int:
        """Return the epoch milliseconds of now, the one under way counted whole."""
        return self._set_ms + math.ceil((passed_s() - self._set_at) * 1000)

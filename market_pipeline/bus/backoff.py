"""Waiting longer and longer, for a bounded time, and from the start again after a success."""

from __future__ import annotations

import asyncio
import random
import time

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 1.0


class Backoff:
    """Bound a series of attempts of one kind by `bound_s` seconds from its first failure.

    A library's retry loop bounds one kind of failure; a publication has two (full, away) that may take turns, and
    each has its own bound. With dozens of publications in flight it must also say so once, not once an attempt.
    """

    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self.reset()

    def reset(self) -> None:
        """Forget the failures so far."""
        self._began: float | None = None
        self._wait_s = FIRST_WAIT_S

    @property
    def first(self) -> bool:
        """Whether nothing has failed since the last reset."""
        return self._began is None

    @property
    def seconds_left(self) -> float:
        """Seconds until the bound, the whole of it before the first failure."""
        return self._bound_s if self._began is None else max(0.0, self._began + self._bound_s - time.monotonic())

    async def wait(self) -> bool:
        """Sleep a jittered while; return False at once, or early, when the bound has passed."""
        if self._began is None:
            self._began = time.monotonic()
        left = self.seconds_left
        if left <= 0:
            return False
        await asyncio.sleep(min(left, self._wait_s * random.uniform(0.5, 1.0)))
        self._wait_s = min(LONGEST_WAIT_S, self._wait_s * 2)
        return True

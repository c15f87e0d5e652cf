"""Waiting for what servers and processes bring about."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(holds: Callable[[], object], what: str, seconds: float = 120.0, every: float = 0.25) -> float:
    """Wait until something holds, errors of servers that are away notwithstanding; return the seconds that it took."""
    began = time.monotonic()
    error: Exception | None = None
    while True:
        try:
            if holds():
                return time.monotonic() - began
        except Exception as raised:
            error = raised
        if time.monotonic() - began > seconds:
            raise AssertionError(f"{what} within {seconds:.0f} s" + (f" ({error})" if error else ""))
        time.sleep(every)

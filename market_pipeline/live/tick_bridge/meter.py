"""What the tick bridge counts and measures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RATE_S = 10.0
LATENCY_S = 60.0


@dataclass
class Counts:
    """Count since the start of the service."""

    ticks: int = 0
    batches: int = 0
    heartbeats: int = 0
    duplicates: int = 0
    fenced: int = 0
    superseded: int = 0
    dead_letters: int = 0
    transactions: int = 0
    holes: int = 0
    expired_losses: int = 0
    outages: int = 0
    reopened: int = 0


class Meter:
    """Measure ticks a second over the last 10 s, and latencies over the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._stored: deque[tuple[float, int]] = deque()
        self._latencies: deque[tuple[float, np.ndarray]] = deque()

    def stored(self, ticks: int, latencies_ms: list[int]) -> None:
        """Note a commit: its ticks, and how long each of its batches took from the collector into the store."""
        now = self._clock()
        self._stored.append((now, ticks))
        if latencies_ms:
            self._latencies.append((now, np.array(latencies_ms)))
        self._forget(now)

    def ticks_per_s(self) -> float:
        """Return the rate of the last 10 s, or of the time since the start."""
        now = self._clock()
        self._forget(now)
        return sum(ticks for _, ticks in self._stored) / max(1.0, min(RATE_S, now - self._began))

    def latency_ms(self) -> tuple[float, float] | None:
        """Return median and 99th percentile of the last minute; None where nothing was stored."""
        self._forget(self._clock())
        if not self._latencies:
            return None
        low, high = np.percentile(np.concatenate([each for _, each in self._latencies]), [50, 99])
        return float(low), float(high)

    def _forget(self, now: float) -> None:
        while self._stored and self._stored[0][0] < now - RATE_S:
            self._stored.popleft()
        while self._latencies and self._latencies[0][0] < now - LATENCY_S:
            self._latencies.popleft()

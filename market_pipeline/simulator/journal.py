"""What was asked of the vendor: the last requests and counters. Keys appear by name only."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Any

import msgspec


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one request: `at` in epoch seconds, `status` 0 when the connection was dropped without an answer."""

    at: float
    key: str | None
    kind: str
    path: str
    ticker: str | None
    start: str | None
    end: str | None
    multiplier: str | None
    timespan: str | None
    cursor: bool
    status: int
    rows: int
    elapsed_ms: float
    faults: list[str]


class Journal:
    """Keep the last requests and count them all by key, kind and status; safe for many threads."""

    def __init__(self, size: int = 20_000) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque(maxlen=size)
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._statuses: Counter[int] = Counter()
        self._rows = 0

    def add(self, entry: Entry) -> None:
        """Note a request after its answer."""
        with self._lock:
            self._entries.append(entry)
            self._kinds[(entry.key or "unknown", entry.kind)] += 1
            self._statuses[entry.status] += 1
            self._rows += entry.rows

    def entries(self) -> list[Entry]:
        """Return the last requests, oldest first."""
        with self._lock:
            return list(self._entries)

    def stats(self) -> dict[str, Any]:
        """Return `{"requests", "rows", "by_key": {key: {kind: count}}, "by_status": {status: count}}`."""
        with self._lock:
            by_key: dict[str, dict[str, int]] = {}
            for (name, kind), count in self._kinds.items():
                by_key.setdefault(name, {})[kind] = count
            by_status = {str(status): count for status, count in sorted(self._statuses.items())}
            return {"requests": self._kinds.total(), "rows": self._rows, "by_key": by_key, "by_status": by_status}

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._kinds.clear()
            self._statuses.clear()
            self._rows = 0

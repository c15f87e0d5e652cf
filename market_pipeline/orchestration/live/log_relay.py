"""What the services log, shown in the run's log: by the owner's thread, never by theirs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import MutableMapping
from typing import Any

import structlog

from market_pipeline.orchestration.quiet_log import QuietLog
from market_pipeline.orchestration.run_log import HIDDEN, LEVELS

MOST_WAITING = 200
LINES_A_MINUTE = 30
"""An event costs tens of milliseconds and stays for good: a run of days says the important things only."""


class LogRelay:
    """Collect structured entries of level info and more in memory; `drain` writes them to a step's log.

    Dagster's log is a database: written to from the services' event loop it would stop ingestion whenever that
    database is slow or away.
    """

    def __init__(self, log: Any) -> None:
        self._log = QuietLog(log)
        self._waiting: deque[tuple[int, str]] = deque(maxlen=MOST_WAITING)
        self._before: dict[str, Any] = {}
        self._minute, self._lines = 0, 0
        self.dropped = 0

    def __enter__(self) -> LogRelay:
        self._before = structlog.get_config()
        processors = self._before["processors"]
        # the last processor renders; the copy is made just before it
        structlog.configure(processors=[*processors[:-1], self._copy, processors[-1]])
        return self

    def __exit__(self, *_: object) -> None:
        self.drain()
        structlog.configure(processors=self._before["processors"])

    def drain(self) -> None:
        """Write what was collected, within the minute's allowance; a storage that is away keeps nobody."""
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._lines = minute, 0
        while self._waiting and self._lines < LINES_A_MINUTE:
            level, text = self._waiting.popleft()
            if not self._log.log(level, text):
                self.dropped += 1
                return
            self._lines += 1

    def _copy(self, _: Any, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        level = LEVELS.get(method, LEVELS["error"])
        if level >= LEVELS["info"]:
            if len(self._waiting) == MOST_WAITING:
                self.dropped += 1
            values = " ".join(f"{name}={value}" for name, value in entry.items() if name not in HIDDEN)
            self._waiting.append((level, f"{entry.get('event', '')} {values}".rstrip()))
        return entry

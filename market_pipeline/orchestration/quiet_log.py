"""A step's log for work that must outlive it."""

from __future__ import annotations

import logging
from typing import Any


class QuietLog:
    """Write to a step's log, and never raise: it is a database, which may be away.

    What could not be said there is counted in `lost`, and goes to the process's own log.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self.lost = 0

    def info(self, text: str) -> None:
        """Say how it goes."""
        self.log(logging.INFO, text)

    def warning(self, text: str) -> None:
        """Say what a person should know."""
        self.log(logging.WARNING, text)

    def log(self, level: int, text: str) -> bool:
        """Say it at a level of `logging`; return whether the log took it."""
        try:
            self._log.log(level, text)
        except Exception:  # each storage has errors of its own
            self.lost += 1
            logging.getLogger(__name__).log(level, "%s", text)
            return False
        return True

"""What the rooms below log during a step, shown in the run's own log as well."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog

from market_pipeline.orchestration.quiet_log import QuietLog

MOST_LINES = 300
"""An event costs tens of milliseconds: a chatty step must not slow itself down. Everything still goes to stdout."""

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
HIDDEN = frozenset({"event", "level", "timestamp", "run_id"})


@contextmanager
def service_log(log: Any) -> Iterator[None]:
    """Copy structured log entries of level info and more to a step's log while the block runs.

    Where that log does not take them, because it is a database that is away, what logs goes on.

    The in-process executor runs one step at a time, so that structlog's configuration, which is the process's, can be
    lent to the step and given back.
    """
    before = structlog.get_config()
    lines, quiet = 0, QuietLog(log)

    def copy(_: Any, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        nonlocal lines
        level = LEVELS.get(method, logging.ERROR)
        if level >= logging.INFO and lines < MOST_LINES:
            lines += 1
            values = " ".join(f"{name}={value}" for name, value in entry.items() if name not in HIDDEN)
            quiet.log(level, f"{entry.get('event', '')} {values}".rstrip())
            if lines == MOST_LINES:
                quiet.warning(f"{MOST_LINES} lines were copied from the services; the rest is in the step's stdout")
        return entry

    # the last processor renders; the copy is made just before it
    structlog.configure(processors=[*before["processors"][:-1], copy, before["processors"][-1]])
    try:
        yield
    finally:
        structlog.configure(processors=before["processors"])

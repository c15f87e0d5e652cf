"""Servers that a killed supervisor left behind."""

from __future__ import annotations

import signal
import time

import structlog

from market_pipeline.errors import LocalStackError
from market_pipeline.local import locks, processes
from market_pipeline.local.components import COMPONENTS
from market_pipeline.local.layout import Home

_GRACE_S = 10.0  # the kernel told them to stop when the supervisor died: they are closing their files

_log = structlog.get_logger(__name__)


def end_orphans(home: Home) -> int:
    """End every process of this stack that lives without its supervisor; return how many there were.

    The caller holds the supervisor's lock. A server is known by the lock that it inherited, so nothing is judged by a
    process number alone; a run of Dagster by the mark in its environment.

    Raises:
        LocalStackError: a lock stays held, by a process that we may not see or end.
    """
    ended = 0
    until = time.monotonic() + _GRACE_S
    names = [name for name in COMPONENTS if locks.is_held(home.lock(name))]
    while names and time.monotonic() < until:
        time.sleep(0.1)
        names = [name for name in names if locks.is_held(home.lock(name))]
    for name in names:
        orphans = locks.holders(home.lock(name))
        _log.warning("orphans are ended", component=name, pids=[process.pid for process in orphans])
        processes.end(orphans, COMPONENTS[name].stop_signal, COMPONENTS[name].stop_timeout_s)
        ended += len(orphans)
        if locks.is_held(home.lock(name)):
            raise LocalStackError(
                f"a {name} of an earlier run still holds {home.lock(name)}, and this user cannot end it: end it first"
            )
    runs = locks.marked(home.root)
    if runs:
        _log.warning("orphans are ended", pids=[process.pid for process in runs])
        processes.end(runs, signal.SIGTERM, 5.0, everyone=True)
    return ended + len(runs)

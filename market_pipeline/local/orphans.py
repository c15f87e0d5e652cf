"""Servers that a killed supervisor left behind."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import structlog

from market_pipeline.errors import LocalStackError
from market_pipeline.local import locks, processes
from market_pipeline.local.components import COMPONENTS
from market_pipeline.local.layout import Home

_GRACE_S = 3.0  # the kernel told them to stop when the supervisor died: they are closing their files

_RELEASE_S = 5.0

_log = structlog.get_logger(__name__)


def end_orphans(home: Home) -> int:
    """End every process of this stack that lives without its supervisor; return how many there were.

    The caller holds the supervisor's lock. A server is known by the lock that it inherited, so nothing is judged by a
    process number alone; a run of Dagster by the mark in its environment.

    Raises:
        LocalStackError: a lock stays held, by a process that we may not see or end.
    """
    until = time.monotonic() + _GRACE_S
    names = [name for name in COMPONENTS if not locks.wait_until_free(home.lock(name), until - time.monotonic())]
    with ThreadPoolExecutor() as pool:
        ended = sum(pool.map(lambda name: _end_holders(home, name), names))
    runs = locks.marked(home.root)
    if runs:
        _log.warning("orphans are ended", pids=[process.pid for process in runs])
        processes.end(runs, signal.SIGTERM, 5.0, everyone=True)
    return ended + len(runs)


def _end_holders(home: Home, name: str) -> int:
    orphans = locks.holders(home.lock(name))
    _log.warning("orphans are ended", component=name, pids=[process.pid for process in orphans])
    processes.end(orphans, COMPONENTS[name].stop_signal, COMPONENTS[name].stop_timeout_s)
    # The main thread of a server with many shows as dead before the others have closed what they share.
    if not locks.wait_until_free(home.lock(name), _RELEASE_S):
        raise LocalStackError(
            f"a {name} of an earlier run still holds {home.lock(name)}, and this user cannot end it: end it first"
        )
    return len(orphans)

"""Locks that outlive their taker: a server inherits the descriptor, so an orphan is seen by its lock.

Two nats-servers on one store both start and both acknowledge sequence 1. The kernel keeps a flock as long as any
process has the descriptor, so "the lock is free" means "no server of the last run is left", whatever was killed.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

import psutil

from market_pipeline.file_locks import is_held
from market_pipeline.local.layout import PRIVATE_FILE

MARK = "MARKET_PIPELINE_SUPERVISED"


class Lock:
    """An exclusive flock on a file; `fd` is what a child inherits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1

    def take(self, wait_s: float = 0.5) -> bool:
        """Take the lock, waiting at most `wait_s` seconds; False when another process keeps it.

        The default outlasts the moment in which `is_held` looks.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    os.close(fd)
                    return False
                time.sleep(0.05)
            else:
                self.fd = fd
                return True

    def release(self) -> None:
        """Close our descriptor; the lock stays taken while a child has it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def wait_until_free(path: Path, timeout_s: float) -> bool:
    """Wait until nobody holds the lock; False when somebody still does."""
    until = time.monotonic() + timeout_s
    while is_held(path):
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True


def holders(path: Path) -> list[psutil.Process]:
    """Return the processes that have the lock file open, this one excepted: the owners of a lock that is held."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return []
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            if any(_is_same(Path(file.path), wanted) for file in process.open_files()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def mark(root: Path, component: str) -> dict[str, str]:
    """Return the variable by which a component's process and its descendants are known."""
    return {MARK: f"{component}:{root}"}


def marked(root: Path, component: str | None = None) -> list[psutil.Process]:
    """Return the living processes that a supervisor of the stack in `root` started, and their descendants.

    This finds the runs of Dagster too, which inherit no lock; not PostgreSQL, which writes its title over its
    environment. The caller and its ancestors are left out, so that a run may stop the stack that it runs in.
    """
    found = []
    own = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        try:
            name, _, folder = process.environ().get(MARK, "").partition(":")
            if folder == str(root) and component in (None, name) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _is_same(path: Path, wanted: os.stat_result) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_dev, stat.st_ino) == (wanted.st_dev, wanted.st_ino)

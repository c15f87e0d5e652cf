"""Start and end server processes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from market_pipeline.local.layout import PRIVATE_FILE

_EXEC = Path(__file__).with_name("_exec.py")
LOG_LIMIT = 10 * 1024 * 1024
LOGS_KEPT = 3
_PLAIN_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONDONTWRITEBYTECODE",
)


@dataclass(frozen=True)
class Launch:
    """How one server is started.

    `user` is (uid, gid) when it must not run as we do; `pass_parents` lets that user pass through closed folders above
    its own. `parent_signal` is what the server gets when the supervisor dies.
    """

    argv: list[str]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    user: tuple[int, int] | None = None
    pass_parents: bool = False
    parent_signal: signal.Signals = signal.SIGTERM

    def wrapped(self, *, die_with_parent: bool = True) -> list[str]:
        """Return the command line that goes through `_exec.py`."""
        options = {
            "parent": os.getpid() if die_with_parent else 0,
            "signal": int(self.parent_signal),
            "user": self.user,
            "pass_parents": self.pass_parents,
        }
        return [sys.executable, "-I", "-S", str(_EXEC), json.dumps(options), *self.argv]


def plain_environment() -> dict[str, str]:
    """Return the few variables that a server needs: no key or token of the user's shell reaches it."""
    kept = {name: os.environ[name] for name in _PLAIN_VARIABLES if name in os.environ}
    return {**kept, "TZ": "UTC"}


async def start(launch: Launch, environment: Mapping[str, str], log: Path, lock_fd: int) -> asyncio.subprocess.Process:
    """Start a server in a session of its own, its output in `log`, the lock's descriptor inherited.

    Call it from the main thread: the kernel ties the death signal to the thread that forked.
    """
    with open_log(log) as output:
        return await asyncio.create_subprocess_exec(
            *launch.wrapped(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=launch.cwd,
            env=dict(environment),
            pass_fds=(lock_fd,),
            start_new_session=True,
        )


def open_log(path: Path) -> io.FileIO:
    """Open a log for appending, private, moving it aside first when it has grown past 10 MiB."""
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        for number in range(LOGS_KEPT - 1, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            if older.exists():
                older.replace(path.with_name(f"{path.name}.{number + 1}"))
        path.replace(path.with_name(f"{path.name}.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE_FILE)
    return io.FileIO(descriptor, "ab")


def log_tail(path: Path, lines: int = 12) -> str:
    """Return the last lines of a log, at most 8 KiB; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def session_members(session: int) -> list[psutil.Process]:
    """Return the living processes of a server's session: the server, its children, the runs it launched."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def end(processes: Iterable[psutil.Process], first: signal.Signals, grace_s: float, *, everyone: bool = False) -> None:
    """End processes: the signal to those whose parent is not among them, then SIGTERM to what is left, then SIGKILL.

    With `everyone` the first signal goes to all: a run of Dagster then says in the event log that it was interrupted.

    psutil compares creation times, so a number that the system gave to a stranger meanwhile is not signalled.
    """
    alive = list(processes)
    numbers = {process.pid for process in alive}
    for process in alive:
        try:
            if everyone or process.ppid() not in numbers:
                process.send_signal(first)
                process.send_signal(signal.SIGCONT)  # a frozen server can't heed anything else
        except psutil.Error:
            continue
    alive = wait_until_gone(alive, grace_s)
    for process in alive:
        _signal(process, signal.SIGTERM)
    alive = wait_until_gone(alive, min(3.0, grace_s))
    for process in alive:
        _signal(process, signal.SIGKILL)
    wait_until_gone(alive, 5.0)


def wait_until_gone(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait until processes have ended and return those that have not.

    psutil's own wait would reap our children and so take their exit codes from asyncio.
    """
    alive = list(processes)
    until = time.monotonic() + timeout_s
    while alive := [process for process in alive if is_alive(process)]:
        if time.monotonic() >= until:
            break
        time.sleep(0.02)
    return alive


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return

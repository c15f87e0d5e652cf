"""Start a ClickHouse server as a child process, and stop it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import httpx

from market_pipeline.errors import LocalStackError

MODULE = "market_pipeline.local.clickhouse"
HOST = "127.0.0.1"
USER = "default"
PASSWORD_FILE = "password"  # noqa: S105 - the name of a file
READY_FILE = "ready.json"
LOG_FILE = "server.log"

_ROOT = Path(__file__).resolve().parents[3]
_STOP = 15.0  # seconds; the server itself gives up after 8
_LAST_LINES = 12


@dataclass
class ServerProcess:
    """A running server; leaving it as a context manager stops it."""

    process: subprocess.Popen[bytes]
    path: Path
    host: str
    port: int
    user: str
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """The server's address, without credentials."""
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self.process.pid

    def stop(self) -> None:
        """Stop the server cleanly (SIGTERM); do nothing where it has stopped already."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL)."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def command(path: Path, *, port: int = 0, arguments: Sequence[str] = ()) -> list[str]:
    """Return the command that serves a folder, with password, ready file and lock inside that folder."""
    return [
        sys.executable,
        "-m",
        MODULE,
        f"--path={path}",
        f"--port={port}",
        f"--password-file={path / PASSWORD_FILE}",
        f"--ready-file={path / READY_FILE}",
        *arguments,
    ]


def environment() -> dict[str, str]:
    """Return this process's environment with the package on the child's path, installed or not."""
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def start(
    path: Path,
    *,
    port: int = 0,
    timeout: float = 30,
    arguments: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> ServerProcess:
    """Start a server over a folder and return it once it has answered a query.

    `timeout` in seconds. `arguments` are further options of the command line, `pass_fds` descriptors that it
    inherits. The server ends with this process (Linux). Raises LocalStackError with its last lines where it does not
    come up; no process is left behind then.
    """
    path = path.resolve()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    started = time.time()
    together = ["--die-with-parent"] if sys.platform.startswith("linux") else []
    with open(path / LOG_FILE, "ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            command(path, port=port, arguments=[*together, *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
            pass_fds=tuple(pass_fds),
        )
    try:
        found = _wait_until_ready(process, path / READY_FILE, started, deadline)
        password = (path / PASSWORD_FILE).read_text(encoding="utf-8").strip("\r\n")
        _ask(found, password, deadline)
    except BaseException as error:
        process.kill()
        process.wait()
        if isinstance(error, LocalStackError | httpx.HTTPError):
            message = f"ClickHouse did not start in {path}: {error}{_last_lines(path / LOG_FILE, begin)}"
            raise LocalStackError(message) from None
        raise
    return ServerProcess(process, path, HOST, found, USER, password)


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, started: float, deadline: float) -> int:
    """Wait for a ready file of this very process: one that was killed may have left its own, even under this pid."""
    while True:
        status = process.poll()
        if status is not None:
            raise LocalStackError(f"it ended with status {status}")
        try:
            found = json.loads(ready.read_text(encoding="utf-8")) if ready.stat().st_mtime > started else {}
        except FileNotFoundError:
            found = {}
        if found.get("pid") == process.pid:
            return int(found["port"])
        if time.monotonic() > deadline:
            raise LocalStackError("it was not ready in time")
        time.sleep(0.02)


def _ask(port: int, password: str, deadline: float) -> None:
    answer = httpx.post(
        f"http://{HOST}:{port}/",
        content="SELECT sum(number) FROM numbers(10)",
        auth=(USER, password),
        timeout=max(deadline - time.monotonic(), 1.0),
        trust_env=False,  # no proxy for loopback
    )
    if answer.text.strip() != "45":
        raise LocalStackError(f"its first answer was wrong: {answer.text[:200]}")


def _last_lines(log: Path, begin: int) -> str:
    with open(log, "rb") as opened:
        opened.seek(begin)
        lines = opened.read()[-8192:].decode(errors="replace").splitlines()[-_LAST_LINES:]
    return "".join(f"\n    {line}" for line in lines)

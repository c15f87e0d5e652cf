"""Start, find and stop a stack from Python: what the command line and the tests use."""

from __future__ import annotations

import os
import select as io_select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

import msgspec
import psutil

from market_pipeline.errors import LocalStackError
from market_pipeline.file_locks import is_held
from market_pipeline.local import locks, processes
from market_pipeline.local.components import COMPONENTS, DEFAULT_MODULE, select
from market_pipeline.local.disk import DEFAULT_MIN_FREE_MB
from market_pipeline.local.layout import Home
from market_pipeline.local.orphans import end_orphans
from market_pipeline.local.processes import Launch
from market_pipeline.local.state import StackState, read_state
from market_pipeline.local.supervisor import Options
from market_pipeline.settings import Settings, load_settings

Progress = Callable[[StackState], None]
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 90.0
_BEGIN_TIMEOUT_S = 120.0  # longer than the orphans of a killed stack may take to end
_POLL_S = 0.05


class Stack:
    """One stack in one folder.

        with Stack(folder, components=("nats", "clickhouse")) as stack:
            settings = stack.settings

    Parameters:
        home: the stack's folder, made when it is missing.
        components: names of `COMPONENTS`, and `dagster` for all three of Dagster's; None for everything.
        module: the module that holds Dagster's definitions.
        project_dir: the folder that gets the `.env`; None for none.
        die_with_parent: end the stack when this process dies (for tests); else it lives on until `stop`.
    """

    def __init__(
        self,
        home: Path | str,
        components: Iterable[str] | None = None,
        *,
        module: str = DEFAULT_MODULE,
        project_dir: Path | str | None = None,
        min_free_mb: int = DEFAULT_MIN_FREE_MB,
        repick_ports: bool = False,
        die_with_parent: bool = False,
    ) -> None:
        self.home = Home.at(home)
        self.components = select(components)
        self._module = module
        self._project_dir = str(Path(project_dir).resolve()) if project_dir is not None else None
        self._min_free_mb = min_free_mb
        self._repick_ports = repick_ports
        self._die_with_parent = die_with_parent
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> Settings:
        """The settings with which clients reach this stack."""
        return load_settings(self.home.root)

    @property
    def is_running(self) -> bool:
        """Whether a supervisor owns the folder."""
        return is_held(self.home.lock("supervisor"))

    def state(self) -> StackState | None:
        """Return what the running supervisor last said; None when there is none."""
        return read_state(self.home) if self.is_running else None

    def start(self, progress: Progress | None = None, *, timeout_s: float = START_TIMEOUT_S) -> StackState:
        """Start the stack and wait until every component is ready.

        A stack that is already running is left as it is, and its state returned.

        Raises:
            LocalStackError: it cannot start, or a component is not ready; what runs goes on running.
        """
        ending = self.state()
        if ending is not None and ending.phase in ("stopping", "stopped"):
            locks.wait_until_free(self.home.lock("supervisor"), STOP_TIMEOUT_S)
        if not self.is_running:
            self._spawn()
        state = self._wait_until_settled(progress, timeout_s)
        if not state.healthy:
            broken = [c for c in state.components if c.state != "ready"]
            raise LocalStackError("\n".join(f"{c.name}: {c.detail or c.state}" for c in broken))
        return state

    def stop(self, progress: Progress | None = None, *, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Stop the stack and wait until nothing of it is left; False when it was not running.

        Raises:
            LocalStackError: something of it cannot be ended.
        """
        was_running = self.is_running
        if was_running:
            self._signal(signal.SIGTERM)
            until = time.monotonic() + timeout_s
            while self.is_running and time.monotonic() < until:
                if progress is not None and (state := read_state(self.home)) is not None:
                    progress(state)
                time.sleep(_POLL_S)
            if self.is_running:
                self._signal(signal.SIGKILL)
        self._reap()
        if not self.home.run.exists():
            return was_running
        with locks.Lock(self.home.lock("supervisor")) as lock:
            if not lock.take(5.0):
                raise LocalStackError(f"the supervisor of {self.home.root} does not end: it belongs to another user?")
            return bool(end_orphans(self.home)) or was_running

    def kill_all(self) -> None:
        """Kill every process of the stack at once (SIGKILL), the supervisor first."""
        victims = self._supervisors()
        for name in COMPONENTS:
            if is_held(self.home.lock(name)):
                victims += locks.holders(self.home.lock(name))
        victims += locks.marked(self.home.root)
        for victim in victims:
            _kill(victim, signal.SIGKILL)
        processes.wait_until_gone(victims, 10.0)
        self._reap()

    def __enter__(self) -> Stack:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def options(self, report_fd: int | None = None) -> Options:
        """Return what the supervisor is told."""
        return Options(
            home=str(self.home.root),
            components=self.components,
            module=self._module,
            project_dir=self._project_dir,
            min_free_mb=self._min_free_mb,
            repick_ports=self._repick_ports,
            report_fd=report_fd,
        )

    def _spawn(self) -> None:
        self.home.create()
        read_end, write_end = os.pipe()
        argv = [sys.executable, "-m", "market_pipeline.local.supervisor"]
        argv.append(msgspec.json.encode(self.options(write_end)).decode())
        if self._die_with_parent:
            argv = Launch(argv, cwd=Path("/")).wrapped()
        try:
            with processes.open_log(self.home.log("supervisor")) as log:
                self._process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    pass_fds=(write_end,),
                    start_new_session=True,
                )
        finally:
            os.close(write_end)
        with os.fdopen(read_end, "rb", buffering=0) as pipe:
            error = self._read_report(pipe.fileno())
        if error:
            self._reap()
            raise LocalStackError(error)

    def _read_report(self, pipe: int) -> str:
        """Wait for the supervisor's word; return its error, or nothing when it began."""
        text = b""
        until = time.monotonic() + _BEGIN_TIMEOUT_S
        while time.monotonic() < until:
            if not io_select.select([pipe], [], [], 1.0)[0]:
                continue
            chunk = os.read(pipe, 65_536)
            if not chunk:
                break
            text += chunk
        if not text:
            tail = processes.log_tail(self.home.log("supervisor"))
            return f"the supervisor ended before it began. Last lines of {self.home.log('supervisor')}:\n{tail}"
        return str(msgspec.json.decode(text).get("error", ""))

    def _wait_until_settled(self, progress: Progress | None, timeout_s: float) -> StackState:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if not self.is_running:
                tail = processes.log_tail(self.home.log("supervisor"))
                raise LocalStackError(f"the supervisor ended. Last lines of {self.home.log('supervisor')}:\n{tail}")
            state = read_state(self.home)
            if state is not None:
                if progress is not None:
                    progress(state)
                if state.phase == "running" and state.settled:
                    return state
            time.sleep(_POLL_S)
        raise LocalStackError(f"the stack is not ready after {timeout_s:.0f} s: see `market-pipeline status`")

    def _signal(self, number: signal.Signals) -> None:
        for process in self._supervisors():
            _kill(process, number)

    def _supervisors(self) -> list[psutil.Process]:
        """Return who holds the supervisor's lock: by its own word, if the lock confirms it.

        Another command that looks at the lock at this moment has the file open too.
        """
        holders = locks.holders(self.home.lock("supervisor"))
        state = read_state(self.home)
        return [process for process in holders if state and process.pid == state.pid] or holders

    def _reap(self) -> None:
        if self._process is not None:
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                return
            self._process = None


def _kill(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return

"""Keep one component alive: start it, wait until it does its work, watch it, restart it, stop it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from market_pipeline.errors import LocalStackError
from market_pipeline.local import processes
from market_pipeline.local.components import Component, ProbeFailed, ProbeUnknown
from market_pipeline.local.disk import is_full, says_full
from market_pipeline.local.locks import Lock, mark, marked
from market_pipeline.local.state import ComponentState, Condition

PROBE_EVERY_S = 5.0
DEEP_EVERY_S = 60.0  # a probe that writes
READY_POLL_S = 0.05
READY_POLL_MAX_S = 0.5
UNHEALTHY_AFTER = 2  # failed probes in a row
HANG_LIMIT_S = 120.0  # without one good probe: the process lives and does nothing, so it is restarted
QUICK_S = 30.0
QUICK_FAILURES = 5
BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 4.0)

_log = structlog.get_logger(__name__)


class Keeper:
    """Own the process of one component for as long as the supervisor runs."""

    def __init__(self, component: Component, changed: Callable[[], None]) -> None:
        self.component = component
        self.lock = Lock(component.home.lock(component.name))
        self.state = ComponentState(name=component.name, address=component.address)
        self.settled = asyncio.Event()
        self._changed = changed
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._final = ""

    async def run(self, needed: list[Keeper]) -> None:
        """Live until stopped, or until the component has failed for good."""
        for other in needed:
            if not await self._unless_stopped(other.settled.wait()):
                return
            if other.state.state == "failed":
                self._fail(f"needs {other.component.name}, which failed")
                return
        quick = 0
        while not self._stopping.is_set():
            self._final = ""
            began = time.monotonic()
            was_ready = self.state.ready_at
            why = await self._live()
            if self._stopping.is_set():
                return
            long_lived = self.state.ready_at != was_ready and time.monotonic() - began > QUICK_S
            quick = 1 if long_lived else quick + 1
            self.state.last_exit = why
            _log.warning("component ended", component=self.component.name, why=why, quick_failures=quick)
            if self._final or quick >= QUICK_FAILURES:
                self._fail(self._failure(why, quick))
                return
            self.state.restarts += 1
            self._set("restarting", why)
            await self._unless_stopped(asyncio.sleep(BACKOFF_S[quick - 1]))

    async def stop(self) -> None:
        """End the process politely, then with force; returns when nothing of it is left."""
        self._stopping.set()
        if self._process is not None:
            self._set("stopping")
            await asyncio.to_thread(self._end_remains, self.component.stop_signal, self.component.stop_timeout_s)
            await self._process.wait()
        await asyncio.to_thread(self.component.clean)
        self.state.pid = None
        self._set("stopped")
        self.lock.release()

    async def _live(self) -> str:
        """Run one process from start to end; return how it ended."""
        component, state = self.component, self.state
        try:
            await asyncio.to_thread(component.prepare)
            launch = component.launch()
            component.started_at = time.time()
            environment = {**launch.env, **mark(component.home.root, component.name)}
            log = component.home.log(component.name)
            self._process = await processes.start(launch, environment, log, self.lock.fd)
        except LocalStackError as error:
            self._final = str(error)
            return str(error)
        except OSError as error:
            self._final = "the disk is full" if is_full(error) else str(error)
            return self._final
        state.pid, state.started_at, state.ready_at = self._process.pid, component.started_at, None
        self._set("starting")
        ended = asyncio.create_task(self._process.wait())
        why = await self._until_ready(ended) or await self._watch(ended)
        if not self._stopping.is_set():
            # What is left of a dead server (PostgreSQL's backends) must be gone before the next one starts.
            # Runs that a dead code server launched go on: they write their own events and end by themselves.
            if not component.launches_runs or not ended.done():
                await asyncio.to_thread(self._end_remains, component.stop_signal, component.stop_timeout_s)
            await ended
            state.pid = None
        return why or _how(await ended)

    async def _until_ready(self, ended: asyncio.Task[int]) -> str:
        """Probe until the component does its work; return why it won't, or nothing."""
        deadline = time.monotonic() + self.component.ready_timeout_s
        pause = READY_POLL_S
        detail = ""
        while not self._stopping.is_set():
            await asyncio.wait({ended}, timeout=pause)
            if ended.done():
                return f"{_how(ended.result())} before it was ready"
            error = await self._ask(deep=True, bootstrap=True)
            if error is None:
                self.state.ready_at = time.time()
                self._set("ready")
                self.settled.set()
                return ""
            detail = str(error)
            late = time.monotonic() > deadline
            if (isinstance(error, ProbeFailed) and error.final) or (isinstance(error, ProbeUnknown) and late):
                # It runs; a person has to mend what it serves, or what it is asked through.
                self._set("unhealthy", detail)
                self.settled.set()
                deadline = float("inf")
            elif self.state.detail != detail and self.state.state == "starting":
                self._set("starting", detail)
            if late and deadline != float("inf"):
                return f"not ready within {self.component.ready_timeout_s:.0f} s: {detail}"
            pause = min(READY_POLL_MAX_S, pause * 1.3)
        return ""

    async def _watch(self, ended: asyncio.Task[int]) -> str:
        """Probe every few seconds; return when the process ended or hangs."""
        last_good = last_deep = time.monotonic()
        failures = 0
        while not self._stopping.is_set():
            await self._first_of(ended, PROBE_EVERY_S)
            if ended.done():
                return _how(ended.result())
            if self._stopping.is_set():
                break
            deep = time.monotonic() - last_deep > DEEP_EVERY_S
            error = await self._ask(deep=deep, bootstrap=False)
            if deep and error is None:
                last_deep = time.monotonic()
            if error is None:
                failures, last_good = 0, time.monotonic()
                self._set("ready")
            elif isinstance(error, ProbeUnknown):
                last_good = time.monotonic()
                self._set(self.state.state, str(error))
            else:
                failures += 1
                if failures >= UNHEALTHY_AFTER:
                    self._set("unhealthy", str(error))
                final = isinstance(error, ProbeFailed) and error.final
                if not final and time.monotonic() - last_good > HANG_LIMIT_S:
                    return f"no good probe for {HANG_LIMIT_S:.0f} s: {error}"
        return ""

    async def _ask(self, *, deep: bool, bootstrap: bool) -> Exception | None:
        """Probe once; return what was wrong."""
        began = time.perf_counter()
        try:
            if bootstrap:
                await asyncio.to_thread(self.component.bootstrap)
                began = time.perf_counter()
            await asyncio.to_thread(self.component.probe, deep=deep)
        except Exception as error:  # every client library has errors of its own, and each means: not ready
            return error if isinstance(error, ProbeFailed | ProbeUnknown) else ProbeFailed(_one_line(error))
        self.state.probe_ms = round((time.perf_counter() - began) * 1000, 1)
        self.state.probed_at = time.time()
        return None

    async def _first_of(self, task: asyncio.Future[Any], timeout_s: float | None = None) -> None:
        """Wait for a task, for the stop or for the time-out; the task goes on."""
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({task, stop}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()

    async def _unless_stopped(self, what: Coroutine[Any, Any, Any]) -> bool:
        """Wait for something, at most until the stop; tell whether to go on."""
        task = asyncio.create_task(what)
        await self._first_of(task)
        task.cancel()
        return not self._stopping.is_set()

    def _end_remains(self, first: signal.Signals, grace_s: float) -> None:
        """End the component's session and whatever carries its mark (runs of Dagster have left the session)."""
        pid = self.state.pid
        remains = {process.pid: process for process in marked(self.component.home.root, self.component.name)}
        if pid is not None:
            remains |= {process.pid: process for process in processes.session_members(pid)}
        processes.end(remains.values(), first, grace_s, everyone=self.component.launches_runs)

    def _fail(self, detail: str) -> None:
        self._set("failed", detail)
        self.settled.set()

    def _failure(self, why: str, quick: int) -> str:
        if self._final:
            return self._final
        log = self.component.home.log(self.component.name)
        tail = processes.log_tail(log)
        cause = "the disk is full; " if says_full(tail) else ""
        return f"{cause}failed {quick} times in a row ({why}). Last lines of {log}:\n{tail}"

    def _set(self, state: Condition, detail: str = "") -> None:
        if (self.state.state, self.state.detail) != (state, detail):
            self.state.state, self.state.detail = state, detail
            _log.info("component", component=self.component.name, state=state, pid=self.state.pid, detail=detail)
        self._changed()


def _how(code: int) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exited with {code}"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__

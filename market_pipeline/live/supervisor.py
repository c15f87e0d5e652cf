"""The supervisor of live services: validates, starts, watches and restarts them in one event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from market_pipeline.bus.registry import ServiceRegistry, ServiceReport
from market_pipeline.bus.session import open_bus
from market_pipeline.errors import BusError, MarketPipelineError, Terminal, VendorAuthError, VendorNotEntitled
from market_pipeline.live.service import LiveService, ServiceHealth
from market_pipeline.settings import Settings
from market_pipeline.tasks import end_tasks, pause

log = structlog.get_logger(__name__)

PROBE_EVERY_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
# A service that ran for so long before it fell has earned a quick start again.
STABLE_S = 30.0
MENDED_PAUSE_S = 60.0
SAY_EVERY_S = 2.0
STOP_S = 20.0
LEAVE_S = 3.0
_REFUSED = (VendorAuthError, VendorNotEntitled)


@dataclass
class _Kept:
    """One service and how it has fared."""

    service: LiveService
    proven: bool = False
    state: str = "starting"
    problem: str = ""
    restarts: int = 0
    probes_ms: dict[str, float] = field(default_factory=dict)
    busy: bool = False  # inside run()

    def health(self) -> ServiceHealth:
        if self.busy:
            return self.service.health()
        problems = (self.problem,) if self.problem else ("not running yet",) if self.state == "starting" else ()
        return ServiceHealth(self.service.name, self.state, problems)


class LiveSupervisor:
    """Run services until told to stop.

    A service says that it runs only after everything that it needs has done a piece of work (`probe`). What is away
    is waited for; a service that falls is started anew, after a pause that grows. A terminal error of a service that
    never ran, or a vendor that refuses the key, ends all of them: only a person can mend that. A terminal error later
    leaves the others running, and the service is tried again every minute.
    """

    def __init__(self, settings: Settings, services: Sequence[LiveService], *, run_id: str = "") -> None:
        """Prepare; `run_id` is shown in the registry."""
        self._settings = settings
        self._kept = [_Kept(service) for service in services]
        self._run_id = run_id
        self._instance = f"{socket.gethostname()}-{os.getpid()}"

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, or a service has a terminal error that concerns all.

        Raises:
            MarketPipelineError: that error.
        """
        over = asyncio.Event()
        tasks = [asyncio.create_task(self._keep(each, over), name=each.service.name) for each in self._kept]
        saying = asyncio.create_task(self._say(over), name="registry")
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
            over.set()
            await asyncio.wait(tasks, timeout=STOP_S)
        finally:
            over.set()
            await end_tasks((*tasks, stopped))
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.wait((saying,), timeout=LEAVE_S)
            await end_tasks((saying,))
        for result in results:
            if isinstance(result, Exception):
                raise result

    def health(self) -> list[ServiceHealth]:
        """Return the state of every service."""
        return [each.health() for each in self._kept]

    def reports(self) -> list[ServiceReport]:
        """Return what the registry is told."""
        now = time.time()
        return [
            ServiceReport(
                name=health.name,
                instance=self._instance,
                state=health.state,
                at=now,
                problems=health.problems,
                facts=dict(health.facts),
                restarts=each.restarts,
                run_id=self._run_id,
            )
            for each in self._kept
            for health in (each.health(),)
        ]

    async def _keep(self, kept: _Kept, over: asyncio.Event) -> None:
        """Run one service again and again."""
        pause_s = FIRST_PAUSE_S
        name = kept.service.name
        while not over.is_set():
            began = time.monotonic()
            try:
                if not await self._prove(kept, over):
                    return
                kept.busy, kept.problem = True, ""
                log.info("service_runs", service=name, **{f"{k}_ms": round(v, 1) for k, v in kept.probes_ms.items()})
                began = time.monotonic()
                await kept.service.run(over)
                if over.is_set():
                    kept.state = "stopped"
                    return
                error: Exception | None = None
            except MarketPipelineError as raised:
                error = raised
                if isinstance(raised, Terminal) and (not kept.proven or isinstance(raised, _REFUSED)):
                    kept.state, kept.problem = "failed", str(raised)
                    log.error("service_cannot_run", service=name, error=str(raised))
                    raise
            except Exception as raised:
                error = raised
                log.exception("service_fell", service=name)
            finally:
                kept.busy = False
            kept.restarts += 1
            if time.monotonic() - began > STABLE_S:
                pause_s = FIRST_PAUSE_S
            final = isinstance(error, Terminal)
            kept.state = "failed" if final else "waiting"
            kept.problem = str(error) if error else "ended by itself"
            seconds = MENDED_PAUSE_S if final else pause_s
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
            log.warning("service_again", service=name, in_s=seconds, error=kept.problem)
            await pause(over, seconds)

    async def _prove(self, kept: _Kept, over: asyncio.Event) -> bool:
        """Probe until everything that the service needs does its work; False when told to stop before."""
        said = ""
        while not over.is_set():
            try:
                kept.probes_ms = await kept.service.probe()
            except MarketPipelineError as error:
                if isinstance(error, Terminal):
                    raise
                kept.state, kept.problem = "waiting", str(error)
                if str(error) != said:
                    log.warning("service_waits", service=kept.service.name, error=str(error))
                    said = str(error)
                await pause(over, PROBE_EVERY_S)
                continue
            kept.proven = True
            return True
        return False

    async def _say(self, over: asyncio.Event) -> None:
        """Tell the registry every few seconds; it is a convenience, and its absence stops nothing."""
        while not over.is_set():
            try:
                async with open_bus(self._settings.nats, "live registry") as bus:
                    registry = ServiceRegistry(bus)
                    while not over.is_set():
                        await registry.say(self.reports())
                        await pause(over, SAY_EVERY_S)
                    await registry.leave(self.reports())
            except BusError as error:
                log.debug("registry_away", error=str(error))
                await pause(over, SAY_EVERY_S)

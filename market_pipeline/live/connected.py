"""Work over a connection to NATS that is opened, waited for, and opened anew when it ends for good."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import structlog

from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.errors import BusUnreachable
from market_pipeline.settings import NatsSettings
from market_pipeline.tasks import end_tasks, pause, result_unless

log = structlog.get_logger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0
# After a connection that lived for so long the pauses begin small again.
STABLE_S = 10.0
LOOK_S = 0.5

Work = Callable[[BusSession], Coroutine[Any, Any, None]]


class Connected:
    """Do some work over a connection, again over another one when it is gone, until told to stop.

    A client that lost its server reconnects for ever by itself, and the work lives on; but a client that was closed (by
    a refused password, by an error of its own) does nothing any more, and says so to nobody.

    waits_for: why there is no connection now; empty when there is. opened: how many there were.
    """

    def __init__(self, settings: NatsSettings, name: str) -> None:
        """Prepare; `name` is shown in the server's monitoring."""
        self._settings, self._name = settings, name
        self.waits_for = ""
        self.opened = 0

    async def run(self, stop: asyncio.Event, work: Work) -> None:
        """Open a connection, ensure the streams, and work until the work ends by itself, as it should after `stop`.

        While NATS is away it is asked again, after 0.25 s at first and 10 s at last.

        Raises:
            BusAuthError, SettingsError: only a person can mend it. What the work raises, but for BusUnreachable.
        """
        pause_s = FIRST_PAUSE_S
        while not stop.is_set():
            began = time.monotonic()
            try:
                async with AsyncExitStack() as stack:
                    bus = await result_unless(stop, stack.enter_async_context(open_bus(self._settings, self._name)))
                    if bus is None:
                        return
                    await bus.ensure_streams()
                    self.waits_for = ""
                    self.opened += 1
                    await self._work(bus, work)
                    return
            except BusUnreachable as error:
                if not self.waits_for:
                    log.warning("service_waits_for_bus", service=self._name, error=str(error))
                self.waits_for = str(error)
            if time.monotonic() - began > STABLE_S:
                pause_s = FIRST_PAUSE_S
            await pause(stop, pause_s * random.uniform(0.5, 1.0))
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    async def _work(self, bus: BusSession, work: Work) -> None:
        tasks = (asyncio.create_task(work(bus)), asyncio.create_task(_closed(bus)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
                return
            raise BusUnreachable("the connection to NATS is closed for good: another one is opened")
        finally:
            await end_tasks(tasks)


async def _closed(bus: BusSession) -> None:
    while not bus.nc.is_closed:  # noqa: ASYNC110  the client has no event for it
        await asyncio.sleep(LOOK_S)

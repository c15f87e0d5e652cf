"""Ending tasks for sure, and waiting for no longer than one may.

`asyncio.wait_for` of Python 3.11 returns the answer, and drops the cancellation, when both come in the same moment; it
does so around the wait for an event too. The client of NATS uses it under every request. So who ends a task cancels it
until it has ended, and nothing here is built on it; `asyncio.timeout` does not have this fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

AGAIN_S = 0.2

T = TypeVar("T")


async def end_tasks(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks until they have ended; what they raised is passed over."""
    tasks = list(tasks)
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)


async def unless(stop: asyncio.Event, work: Awaitable[object]) -> bool:
    """Do the work; False if `stop` is set before it is done, which ends it."""
    task = asyncio.ensure_future(work)
    if not await _done_before(stop, task):
        return False
    task.result()
    return True


async def result_unless(stop: asyncio.Event, work: Awaitable[T]) -> T | None:
    """Do the work and return what it returns; None if `stop` is set before it is done, which ends it."""
    task = asyncio.ensure_future(work)
    return task.result() if await _done_before(stop, task) else None


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Sleep; True if `stop` was set, at once."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return stop.is_set()
    return True


async def when(event: asyncio.Event, then: asyncio.Event) -> None:
    """Set the one when the other is set."""
    await event.wait()
    then.set()


async def _done_before(stop: asyncio.Event, task: asyncio.Future[Any]) -> bool:
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        return task.done()
    finally:
        await end_tasks((task, stopped))

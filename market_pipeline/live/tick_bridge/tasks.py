"""Waiting with an end, and ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

AGAIN_S = 0.2


async def end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel tasks until they have ended.

    Once is not enough: `asyncio.wait_for` of Python 3.11, under every request to NATS, loses a cancellation that comes
    together with the answer.
    """
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)  # exceptions are told elsewhere


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Do the work; False if `stop` is set before it is done, which ends it."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        await end((task, stopped))


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Sleep; True if `stop` was set, at once."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def when(event: asyncio.Event, then: asyncio.Event) -> None:
    """Set the one when the other is set."""
    await event.wait()
    then.set()

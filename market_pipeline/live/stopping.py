"""Waiting for something, but not past the moment at which one is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def unless(stop: asyncio.Event, work: Awaitable[object]) -> bool:
    """Do the work; False if `stop` is set before it is done, which ends it."""
    done: list[object] = []

    async def collected() -> None:
        done.append(await work)

    await result_unless(stop, collected())
    return bool(done)


async def result_unless(stop: asyncio.Event, work: Awaitable[T]) -> T | None:
    """Do the work and return what it returns; None if `stop` is set before it is done, which ends it."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, stopped):
            each.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)

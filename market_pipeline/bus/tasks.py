"""Ending tasks for sure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_S = 1.0


async def end_tasks(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks until they have ended; what they raised is passed over.

    Once is not enough: `asyncio.wait_for` of Python 3.11, which the client of NATS uses in every request, drops a
    cancellation that comes in the moment in which the answer does.
    """
    tasks = list(tasks)
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)

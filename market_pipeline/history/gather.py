"""Many askers, one query: what a statement costs in ClickHouse is the statement, hardly its size."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

GATHER_S = 0.05


class Gather(Generic[Item, Answer]):
    """Collect items for a moment and let `work` answer all of them at once, in their order."""

    def __init__(self, work: Callable[[list[Item]], Awaitable[list[Answer]]], *, gather_s: float = GATHER_S) -> None:
        self._work = work
        self._gather_s = gather_s
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, item: Item) -> Answer:
        """Return the answer for one item; the work begins after this call.

        Raises:
            Whatever `work` raises: to everybody whose item it had.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._waiting) == 1:
            task = asyncio.create_task(self._run())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return await future

    async def _run(self) -> None:
        await asyncio.sleep(self._gather_s)
        waiting, self._waiting = self._waiting, []
        try:
            answers = await self._work([item for item, _ in waiting])
        except BaseException as error:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        for (_, future), answer in zip(waiting, answers, strict=True):
            if not future.done():
                future.set_result(answer)

from __future__ import annotations

import asyncio

from market_pipeline.bus.tasks import end_tasks


async def test_a_task_that_drops_a_cancellation_is_ended_all_the_same() -> None:
    dropped = 0

    async def stubborn() -> None:
        nonlocal dropped
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if dropped:
                    raise
                dropped += 1

    async def fails() -> None:
        raise KeyError("its own affair")

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(fails()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    await asyncio.wait_for(end_tasks(tasks), 10)
    assert dropped == 1
    assert all(task.done() for task in tasks)

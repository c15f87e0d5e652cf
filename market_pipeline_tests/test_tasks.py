from __future__ import annotations

import asyncio

import pytest

from market_pipeline.tasks import end_tasks, pause, result_unless, unless


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


async def test_a_pause_ends_at_once_when_told_to_and_loses_no_cancellation() -> None:
    stop = asyncio.Event()
    assert await pause(stop, 0.01) is False
    task = asyncio.create_task(pause(stop, 60))
    await asyncio.sleep(0)
    stop.set()
    assert await asyncio.wait_for(task, 10) is True
    stop.clear()

    async def pauses_for_ever() -> None:
        while True:
            await pause(stop, 60)

    task = asyncio.create_task(pauses_for_ever())
    await asyncio.sleep(0)
    stop.set()  # in the same moment: asyncio.wait_for of Python 3.11 would drop the cancellation
    stop.clear()
    task.cancel()
    done, _ = await asyncio.wait((task,), timeout=10)
    assert done
    assert task.cancelled()


async def test_work_goes_on_unless_told_to_stop() -> None:
    stop = asyncio.Event()

    async def answer() -> int:
        return 7

    async def fails() -> None:
        raise KeyError("told")

    assert await unless(stop, answer()) is True
    assert await result_unless(stop, answer()) == 7
    with pytest.raises(KeyError, match="told"):
        await unless(stop, fails())
    ended = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    waiting = asyncio.create_task(unless(stop, endless()))
    await asyncio.sleep(0.01)
    stop.set()
    assert await asyncio.wait_for(waiting, 10) is False
    assert ended.is_set()

"""Many askers, one piece of work: each gets its own answer, and a failure reaches everybody."""

from __future__ import annotations

import asyncio

import pytest

from market_pipeline.history.gather import Gather


async def test_those_who_ask_together_are_answered_together_and_in_order() -> None:
    calls: list[list[int]] = []

    async def work(items: list[int]) -> list[str]:
        calls.append(items)
        return [f"answer {item}" for item in items]

    gather = Gather(work, gather_s=0.01)
    assert await asyncio.gather(*(gather.ask(n) for n in range(5))) == [f"answer {n}" for n in range(5)]
    assert calls == [[0, 1, 2, 3, 4]]
    assert await gather.ask(9) == "answer 9"
    assert calls[1:] == [[9]]


async def test_a_failure_reaches_everybody_and_the_next_round_works() -> None:
    fail = True

    async def work(items: list[int]) -> list[int]:
        if fail:
            raise ValueError("the store is away")
        return items

    gather = Gather(work, gather_s=0.01)
    answers = await asyncio.gather(gather.ask(1), gather.ask(2), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["the store is away"] * 2
    fail = False
    assert await gather.ask(3) == 3


async def test_an_asker_who_leaves_does_not_spoil_the_others() -> None:
    async def work(items: list[int]) -> list[int]:
        return items

    gather = Gather(work, gather_s=0.02)
    leaving = asyncio.create_task(gather.ask(1))
    staying = asyncio.create_task(gather.ask(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == 2
    with pytest.raises(asyncio.CancelledError):
        await leaving

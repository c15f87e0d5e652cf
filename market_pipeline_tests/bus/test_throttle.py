"""The gate, and limits over a real NATS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from nats.aio.client import Client

from market_pipeline.bus.subjects import throttle_subject
from market_pipeline.bus.throttle import Throttle, ThrottleGate, publish_throttle, throttle_gate


async def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 — the gate tells nobody
            await asyncio.sleep(0.002)


async def passes(gate: ThrottleGate, count: int) -> float:
    started = time.monotonic()
    await asyncio.gather(*(gate.pass_() for _ in range(count)))
    return time.monotonic() - started


async def test_without_a_limit_nothing_waits() -> None:
    gate = ThrottleGate("history")
    assert await passes(gate, 1000) < 1
    assert (gate.limited, gate.seconds_throttled, gate.batches_throttled) == (False, 0.0, 0)


async def test_a_limit_spaces_the_batches_of_all_tasks_and_a_release_frees_those_that_wait(nc: Client) -> None:
    async with throttle_gate(nc, "history") as gate:
        await publish_throttle(nc, "history", Throttle(20.0, 60.0, "the bridge lags"))
        await until(lambda: gate.limited)
        assert await passes(gate, 11) >= 10 / 20, "ten intervals between eleven batches"
        assert gate.batches_throttled == 10
        await publish_throttle(nc, "history", Throttle(0.01, 60.0))
        await until(lambda: gate.limited)
        waiting = asyncio.create_task(passes(gate, 50))
        await asyncio.sleep(0)
        await publish_throttle(nc, "history", Throttle(None, 0.0))
        assert await waiting < 10, "at this rate the second would have waited for 100 s"


async def test_a_limit_that_nobody_renews_lapses(nc: Client) -> None:
    async with throttle_gate(nc, "history") as gate:
        await publish_throttle(nc, "history", Throttle(0.001, 0.3))
        await until(lambda: gate.limited)
        await gate.pass_()
        assert 0 < await passes(gate, 100) < 5, "the next would have been due in 1,000 s"
        assert not gate.limited


async def test_a_limit_is_for_one_service_and_nonsense_is_passed_over(nc: Client) -> None:
    async with throttle_gate(nc, "history") as gate:
        await publish_throttle(nc, "other", Throttle(1.0, 60.0))
        await nc.publish(throttle_subject("history"), b"slower!")
        await publish_throttle(nc, "history", Throttle(0.0, 60.0))
        await publish_throttle(nc, "history", Throttle(5.0, 60.0))
        await until(lambda: gate.limited)
        assert gate._rate == 5.0


@pytest.mark.parametrize("limit", [Throttle(-1.0, 5.0), Throttle(1.0, 0.0)])
def test_a_limit_that_makes_no_sense_is_none(limit: Throttle) -> None:
    gate = ThrottleGate("history")
    gate.hear(limit)
    assert not gate.limited

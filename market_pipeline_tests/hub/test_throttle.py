"""The hub's throttle against real streams: set while the bridge lags, released when it has caught up, gone with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.bus.streams import HISTORY
from market_pipeline.bus.throttle import HISTORY_SERVICE
from market_pipeline.hub.throttle import Governor, ThrottleService
from market_pipeline.settings import Settings, ThrottleSettings
from market_pipeline_tests.servers import NatsProcess

SUBJECT = "history.EURUSD.1m"
QUICK = ThrottleSettings(lag_s=0.6, release_s=0.2, batches_per_s=5.0, expiry_s=1.0, every_s=0.05)


@pytest.fixture
def server() -> Iterator[NatsProcess]:
    with NatsProcess() as running:
        yield running


@pytest.fixture
async def bus(server: NatsProcess) -> AsyncIterator[BusSession]:
    async with open_bus(server.settings, "test") as session:
        await session.ensure_streams()
        yield session


async def until(condition: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 — polled state
            await asyncio.sleep(0.01)


async def test_set_while_the_bridge_lags_released_when_it_caught_up_and_gone_with_the_hub(
    server: NatsProcess, bus: BusSession
) -> None:
    service = ThrottleService(Settings(nats=server.settings, throttle=QUICK))
    assert (await service.probe())["nats"] > 0
    stop = asyncio.Event()
    task = asyncio.create_task(service.run(stop))
    async with bus.throttle(HISTORY_SERVICE) as gate:
        await until(lambda: service.health().facts["looks"], "it looks")
        assert not gate.limited
        await bus.js.publish(SUBJECT, b"waits", stream=HISTORY)  # nobody consumes: its age grows
        await until(lambda: gate.limited, "a limit is heard")
        assert float(service.health().facts["lag_history_s"]) > QUICK.lag_s
        limited_since = asyncio.get_running_loop().time()
        await asyncio.gather(*(gate.pass_() for _ in range(11)))
        assert asyncio.get_running_loop().time() - limited_since >= 10 / 5, "renewed for longer than its expiry of 1 s"
        async with bus.consumer(HISTORY) as consumer:
            await consumer.ack(await consumer.fetch(10, 5), confirm=True)
        await until(lambda: not gate.limited, "released")
        assert (service.health().facts["limits"], service.health().facts["releases"]) == (1, 1)
        assert service.health().healthy

        await bus.js.publish(SUBJECT, b"waits again", stream=HISTORY)
        await until(lambda: gate.limited, "limited again")
        task.cancel()  # killed: nobody says that the limit is over
        await asyncio.gather(task, return_exceptions=True)
        assert gate.limited
        await until(lambda: not gate.limited, "lapsed")


async def test_the_service_outlives_the_bus(server: NatsProcess, bus: BusSession) -> None:
    service = ThrottleService(Settings(nats=server.settings, throttle=QUICK))
    stop = asyncio.Event()
    task = asyncio.create_task(service.run(stop))
    await until(lambda: service.health().state == "running", "it runs")
    server.kill()
    await until(lambda: service.health().state == "waiting", "it waits", 30)
    server.start()
    await until(lambda: service.health().state == "running", "it runs again", 30)
    stop.set()
    await asyncio.wait_for(task, 10)
    assert service.health().state == "stopped"


@given(st.lists(st.floats(0, 100), max_size=50))
def test_between_the_thresholds_nothing_changes(lags: list[float]) -> None:
    governor = Governor(ThrottleSettings(lag_s=30, release_s=10))
    limiting = False
    for lag in lags:
        limiting = lag > 30 or (limiting and lag > 10)
        assert governor.judge(lag) == limiting

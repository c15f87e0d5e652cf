"""The supervisor of live services: proof before work, restarts, terminal errors, the registry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from market_pipeline.bus.registry import ServiceRegistry
from market_pipeline.bus.session import open_bus
from market_pipeline.errors import (
    BusUnreachable,
    SettingsError,
    StoreQueryError,
    StoreUnreachable,
    StreamMissing,
    VendorAuthError,
)
from market_pipeline.live import supervisor
from market_pipeline.live.service import ServiceHealth
from market_pipeline.live.supervisor import LiveSupervisor
from market_pipeline.live.thread import LiveThread
from market_pipeline.settings import NatsSettings, Settings
from market_pipeline_tests.servers import NatsProcess


class Scripted:
    """A service that does as it is told: a list of errors (or None) for its probes, another for its runs."""

    def __init__(self, name: str, probes: list[Exception | None] | None = None, runs: list[Exception] | None = None):
        self.name = name
        self.probes, self.runs = probes or [], runs or []
        self.probed = self.ran = 0
        self.running = False

    async def probe(self) -> dict[str, float]:
        self.probed += 1
        error = self.probes.pop(0) if self.probes else None
        if error is not None:
            raise error
        return {"everything": 1.0}

    async def run(self, stop: asyncio.Event) -> None:
        self.ran += 1
        if self.runs:
            raise self.runs.pop(0)
        self.running = True
        try:
            await stop.wait()
        finally:
            self.running = False

    def health(self) -> ServiceHealth:
        return ServiceHealth(self.name, "running", (), {"ticks": 7})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROBE_EVERY_S", "FIRST_PAUSE_S", "MENDED_PAUSE_S", "SAY_EVERY_S"):
        monkeypatch.setattr(supervisor, name, 0.02)


@pytest.fixture
def nats() -> Iterator[NatsProcess]:
    with NatsProcess() as server:
        yield server


NOWHERE = Settings(nats=NatsSettings(url="nats://127.0.0.1:9", connect_timeout=0.1))


async def eventually(holds: Callable[[], object]) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until, "it did not come to be"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def supervised(*services: Scripted, settings: Settings = NOWHERE) -> AsyncIterator[LiveSupervisor]:
    one, stop = LiveSupervisor(settings, services), asyncio.Event()
    task = asyncio.create_task(one.run(stop))
    try:
        yield one
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def test_a_service_is_not_running_before_everything_it_needs_has_worked() -> None:
    away = StoreUnreachable("ClickHouse at host:1 does not answer")
    late = Scripted("bridge", probes=[away] * 5)
    async with supervised(late, Scripted("collector")) as one:
        await eventually(lambda: one.health()[0].state == "waiting")
        assert one.health()[0].problems == ("ClickHouse at host:1 does not answer",)
        assert late.ran == 0
        await eventually(lambda: late.running and one.health()[0].healthy)
    assert not late.running


async def test_a_service_that_falls_is_proven_and_started_anew_while_the_others_go_on() -> None:
    falls = Scripted("aggregator", runs=[BusUnreachable("closed"), RuntimeError("a bug")])
    steady = Scripted("collector")
    async with supervised(falls, steady) as one:
        await eventually(lambda: falls.running)
        assert (falls.ran, falls.probed, steady.ran) == (3, 3, 1)
        assert one.reports()[0].restarts == 2


async def test_what_only_a_person_can_mend_ends_everything_at_the_start() -> None:
    other = Scripted("ticks")
    one = LiveSupervisor(NOWHERE, [Scripted("collector", probes=[SettingsError("set POLYGON_API_KEY")]), other])
    with pytest.raises(SettingsError, match="POLYGON_API_KEY"):
        await asyncio.wait_for(one.run(asyncio.Event()), 10)
    assert not other.running


async def test_a_stream_that_was_lost_at_the_start_is_waited_for() -> None:
    """NATS lost its store between two steps of a probe: whoever connects next creates its streams anew."""
    late = Scripted("repair", probes=[StreamMissing("the stream HISTORY does not exist")])
    async with supervised(late, Scripted("collector")):
        await eventually(lambda: late.running)
        assert (late.probed, late.ran) == (2, 1)


async def test_a_refused_key_ends_everything_at_any_time() -> None:
    one = LiveSupervisor(NOWHERE, [Scripted("collector", runs=[VendorAuthError("the key is unknown")])])
    with pytest.raises(VendorAuthError):
        await asyncio.wait_for(one.run(asyncio.Event()), 10)


async def test_a_later_terminal_error_leaves_the_others_running() -> None:
    broken = Scripted("ticks", runs=[StoreQueryError("a column is missing")])
    async with supervised(broken, Scripted("collector")):
        await eventually(lambda: broken.running)  # mended meanwhile
        assert broken.ran == 2


async def test_the_registry_knows_who_runs_and_forgets_who_left(nats: NatsProcess) -> None:
    settings = Settings(nats=nats.settings)
    async with open_bus(nats.settings, "test") as bus:
        registry = ServiceRegistry(bus)
        async with supervised(Scripted("collector"), Scripted("ticks"), settings=settings):
            until = time.monotonic() + 10
            while [each.state for each in await registry.all()] != ["running", "running"]:
                assert time.monotonic() < until
                await asyncio.sleep(0.02)
            found = await registry.all()
            assert [each.name for each in found] == ["collector", "ticks"]
            assert found[0].facts == {"ticks": 7}
        assert await registry.all() == []


def test_a_thread_raises_what_ended_its_services() -> None:
    services = [Scripted("collector", runs=[VendorAuthError("the key is unknown")])]
    with pytest.raises(VendorAuthError), LiveThread(NOWHERE, services) as live:
        assert live.wait(10)


def test_a_thread_stops_its_services_when_its_owner_leaves() -> None:
    service = Scripted("collector")
    with LiveThread(NOWHERE, [service]) as live:
        until = time.monotonic() + 10
        while not service.running:
            assert time.monotonic() < until
        assert not live.wait(0.01)
        assert [each.name for each in live.health()] == ["collector"]
    assert not service.running

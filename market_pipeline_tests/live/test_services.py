"""Collector and aggregator as live services: what they prove, survive and say of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from market_pipeline.bus.session import open_bus
from market_pipeline.bus.streams import LIVE
from market_pipeline.errors import BusAuthError, BusUnreachable, SettingsError, VendorAuthError
from market_pipeline.live.aggregator.rules import live_rules
from market_pipeline.live.aggregator_service import AggregatorService
from market_pipeline.live.bridge import BridgeWorker
from market_pipeline.live.collector_service import CollectorService
from market_pipeline.live.service import LiveService, ServiceHealth
from market_pipeline.local.clickhouse import process
from market_pipeline.market.live_facts import LiveRules
from market_pipeline.settings import LiveSettings, Settings, StreamSettings, load_settings
from market_pipeline.stores import open_stores
from market_pipeline.stores.seconds import AllBarStore
from market_pipeline_tests.live.aggregating import EUR, MINUTE, T0, eventually, open_bench
from market_pipeline_tests.live.collecting import BTC, ETH, settings, trade
from market_pipeline_tests.servers import NatsProcess, new_database
from market_pipeline_tests.vendors.stream_vendor import StreamVendor, status


@pytest.fixture
def server() -> Iterator[NatsProcess]:
    """A server with empty streams, which the test may stop."""
    with NatsProcess(max_file_store="12GB") as running:
        yield running


@pytest.fixture
async def vendor() -> AsyncIterator[StreamVendor]:
    async with StreamVendor() as running:
        yield running


@asynccontextmanager
async def running(service: LiveService) -> AsyncIterator[asyncio.Task[None]]:
    stop = asyncio.Event()
    task = asyncio.create_task(service.run(stop))
    try:
        yield task
        stop.set()
        await asyncio.wait_for(task, 20)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def fact(service: LiveService, name: str) -> float:
    return float(service.health().facts.get(name, -1))


# ------------------------------------------------------------------------------------------------- collector


async def test_a_collector_collects_says_what_it_does_and_ends(server: NatsProcess, vendor: StreamVendor) -> None:
    service = CollectorService(settings(server, vendor), (BTC, ETH), run_id="r-1")
    assert service.health() == ServiceHealth(
        "collector", "stopped", ("not running",), {"connections": 0, "run_id": "r-1"}
    )
    async with running(service):
        connection = await vendor.subscribed()
        await connection.send(*(trade(number) for number in range(50)))
        await eventually(lambda: fact(service, "ticks") == 50)
        await eventually(lambda: service.health().healthy)
        health = service.health()
        assert (health.name, health.state) == ("collector", "running")
        assert all(isinstance(value, int | float | str) for value in health.facts.values())
        assert health.facts["queue"] == 0
        assert health.facts["crypto_connected"] == 1
        assert fact(service, "batches") >= 1
        assert fact(service, "epoch") > 0
        connection.cut()
        await vendor.subscribed(1)
        await eventually(lambda: fact(service, "lost_disconnect") == 2)
    assert service.health().state == "stopped"


async def test_sets_of_other_names_are_collected_at_the_same_time(server: NatsProcess, vendor: StreamVendor) -> None:
    good = settings(server, vendor)
    named = settings(server, vendor, LiveSettings(name="two"))
    first, unnamed, second = (CollectorService(good, (BTC,)), CollectorService(good, (ETH,)),
                              CollectorService(named, (ETH,)))  # fmt: skip
    async with running(first):
        await eventually(lambda: first.health().state == "running")
        async with running(unnamed):
            await eventually(lambda: unnamed.health().state == "standby" and not unnamed.health().healthy)
            [problem] = unnamed.health().problems
            assert "works on other symbols under the name 'default'" in problem
            assert "MARKET_PIPELINE_LIVE__NAME" in problem
        async with running(second):
            for number, (service, pair) in enumerate(((first, "BTC-USD"), (second, "ETH-USD"))):
                await (await vendor.subscribed(number)).send(trade(number, pair))
                await eventually(lambda service=service: fact(service, "ticks") == 1)  # type: ignore[misc]
            assert (first.health().state, second.health().state) == ("running", "running")
            assert (first.health().facts["set"], second.health().facts["set"]) == ("default", "two")


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", "é"])
def test_a_set_has_a_name_that_leases_and_folders_can_bear(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_PIPELINE_LIVE__NAME", name)
    with pytest.raises(SettingsError, match=r"live\.name.*MARKET_PIPELINE_LIVE__NAME"):
        load_settings()
    monkeypatch.setenv("MARKET_PIPELINE_LIVE__NAME", "forex-2")
    assert load_settings().live.name == "forex-2"


async def test_a_collector_waits_for_nats_and_outlives_a_connection_that_ends_for_good(
    server: NatsProcess, vendor: StreamVendor
) -> None:
    server.stop()
    service = CollectorService(settings(server, vendor), (BTC,))
    async with running(service):
        await eventually(lambda: service.health().state == "waiting")
        assert "NATS at 127.0.0.1" in service.health().problems[0]
        server.start()
        connection = await vendor.subscribed()
        await connection.send(trade(1))
        await eventually(lambda: fact(service, "ticks") == 1)
        epoch = fact(service, "epoch")
        assert service._collector is not None
        await service._collector._bus.nc.close()
        await (await vendor.subscribed(1)).send(trade(2))
        await eventually(lambda: fact(service, "connections") == 2 and fact(service, "ticks") == 1)
        assert fact(service, "epoch") > epoch
        await eventually(lambda: service.health().healthy)


async def test_input_without_output_is_unhealthy_and_shown(server: NatsProcess, vendor: StreamVendor) -> None:
    live = LiveSettings(unhealthy_after_s=0.5)
    service = CollectorService(settings(server, vendor, live), (BTC,))
    async with running(service):
        connection = await vendor.subscribed()
        await eventually(lambda: service.health().healthy)
        server.pause()
        await connection.send(trade(1))
        await eventually(
            lambda: any("without progress" in problem and "BTCUSD" in problem for problem in service.health().problems)
        )
        assert fact(service, "queue") == 1
        server.resume()
        await eventually(lambda: service.health().healthy and fact(service, "ticks") == 1)


async def test_a_refused_key_fails_a_collector(server: NatsProcess, vendor: StreamVendor) -> None:
    vendor.on_auth = lambda number, key: [status("auth_failed", "authentication failed")]
    service = CollectorService(settings(server, vendor), (BTC,))
    with pytest.raises(VendorAuthError, match="POLYGON_API_KEY"):
        await asyncio.wait_for(service.run(asyncio.Event()), 20)
    assert (service.health().state, service.health().healthy) == ("failed", False)


async def test_a_probe_names_what_is_missing_and_does_not_connect_to_the_vendor(
    server: NatsProcess, vendor: StreamVendor
) -> None:
    good = settings(server, vendor)
    assert (await CollectorService(good, (BTC,)).probe())["nats"] > 0
    no_key = good.model_copy(update={"vendor": good.vendor.model_copy(update={"api_key": SecretStr("")})})
    with pytest.raises(VendorAuthError, match="POLYGON_API_KEY"):
        await CollectorService(no_key, (BTC,)).probe()
    bad_url = good.model_copy(update={"stream": good.stream.model_copy(update={"url": "ws://host:port"})})
    with pytest.raises(SettingsError, match=r"stream\.url"):
        await CollectorService(bad_url, (BTC,)).probe()
    nats = good.nats.model_copy(update={"password": SecretStr("wrong")})
    with pytest.raises(BusAuthError):
        await CollectorService(good.model_copy(update={"nats": nats}), (BTC,)).probe()
    with pytest.raises(SettingsError):
        CollectorService(good, ())
    server.stop()
    away = good.model_copy(update={"nats": good.nats.model_copy(update={"connect_timeout": 0.3})})
    with pytest.raises(BusUnreachable):
        await CollectorService(away, (BTC,)).probe()
    assert vendor.connections == []


# ------------------------------------------------------------------------------------------------- aggregator


async def test_an_aggregator_makes_bars_derives_and_says_what_it_does(server: NatsProcess, tmp_path: Path) -> None:
    with process.start(tmp_path / "clickhouse") as clickhouse:
        good = Settings(
            home=tmp_path,
            nats=server.settings,
            stream=StreamSettings(lease_ttl_s=1.0),
            live=LiveSettings(look_back=timedelta(minutes=1), lateness=timedelta(minutes=1), silent_s=60),
            clickhouse=new_database(clickhouse),
        )
        with pytest.raises(SettingsError):
            AggregatorService(good, ())
        service = AggregatorService(good, (EUR,), run_id="r-2")
        assert service.health().state == "stopped"
        async with open_bench(server) as bench:
            probed = await service.probe()
            assert min(probed["nats"], probed["clickhouse"]) > 0
            with open_stores(good) as stores:
                async with bench.bus.consumer(LIVE) as consumer, running(service):
                    stop = asyncio.Event()
                    bridge = asyncio.create_task(
                        BridgeWorker(consumer, AllBarStore(stores.client), stores.ingest, bench.bus).run(stop)
                    )
                    for minute in range(6):
                        at = T0 + minute * MINUTE
                        await bench.send([(at + 500, 1.0 + minute, 1.0 + minute)], alive=at + MINUTE)
                    # a tick beyond the lateness: its bar is final, and its minute has to be repaired
                    await bench.send([(T0 + 700, 9.0, 9.0)], alive=T0 + 7 * MINUTE)
                    await eventually(lambda: fact(service, "bars") == 12 and fact(service, "lost_late") == 1)
                    await eventually(lambda: fact(service, "written") >= 7, 30)
                    await eventually(lambda: service.health().healthy)
                    health = service.health()
                    assert (health.name, health.state) == ("aggregator", "running")
                    assert all(isinstance(value, int | float | str) for value in health.facts.values())
                    assert health.facts["run_id"] == "r-2"
                    assert (health.facts["ticks"], health.facts["late_dropped"]) == (6, 1)
                    assert (health.facts["flushes_unstored"], health.facts["unpublished"]) == (0, 0)
                    assert fact(service, "behind_s") > 0
                    # a connection that ends for good is followed by another, and the bars go on
                    assert service._aggregator is not None
                    await service._aggregator._bus.nc.close()
                    await eventually(
                        lambda: fact(service, "connections") == 2 and service.health().state == "running", 30
                    )
                    await bench.send([(T0 + 7 * MINUTE + 500, 5.0, 5.0)], alive=T0 + 8 * MINUTE)
                    await eventually(lambda: fact(service, "bars") >= 2)
                    stop.set()
                    await asyncio.wait_for(bridge, 20)
        assert service.health().state == "stopped"


def test_the_rules_of_live_bars_come_from_the_settings() -> None:
    given = LiveSettings(delay=timedelta(seconds=2), lateness=timedelta(minutes=3), ahead=timedelta(seconds=5))
    assert live_rules(given) == LiveRules(delay_ms=2000, lateness_ms=180_000, ahead_ms=5000)
    assert live_rules(LiveSettings()) == LiveRules()
    with pytest.raises(SettingsError, match=r"live\.delay"):
        live_rules(LiveSettings(delay=timedelta(minutes=5)))


async def test_a_refused_password_fails_an_aggregator(server: NatsProcess, tmp_path: Path) -> None:
    nats = server.settings.model_copy(update={"password": SecretStr("wrong")})
    service = AggregatorService(Settings(home=tmp_path, nats=nats), (EUR,))
    with pytest.raises(BusAuthError):
        await asyncio.wait_for(service.run(asyncio.Event()), 20)
    assert service.health().state == "failed"
    async with open_bus(server.settings, "test") as bus:
        assert await bus.js.streams_info() == []

"""The collector end to end: a vendor that misbehaves, a real NATS, and what lies in TICKS afterwards."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
from pydantic import SecretStr

from market_pipeline.bus.connection import connect
from market_pipeline.bus.envelope import now_ms
from market_pipeline.bus.lease import Lease
from market_pipeline.bus.losses import LossInterval
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import ensure_streams
from market_pipeline.bus.tick_envelope import LOSS_MARGIN, EncodedTicks
from market_pipeline.errors import BusUnreachable, SettingsError, StoreUnreachable, VendorAuthError
from market_pipeline.live.collector import Collector
from market_pipeline.market.timeframes import from_ms, to_ms
from market_pipeline.settings import LiveSettings
from market_pipeline_tests.live.collecting import BTC, ETH, EUR, collecting, settings, stored, trade, until
from market_pipeline_tests.servers import NatsProcess
from market_pipeline_tests.vendors.stream_vendor import KEY, StreamVendor, quote, status

SCALE = 1 / 64


async def _empty(server: NatsProcess) -> None:
    nc = await connect(server.settings, "test")
    js = nc.jetstream()
    for stream in await js.streams_info():
        await js.delete_stream(stream.config.name or "")
    await ensure_streams(js, scale=SCALE)
    await nc.close()


@pytest.fixture(scope="module")
def running_server() -> Iterator[NatsProcess]:
    with NatsProcess() as running:
        yield running


@pytest.fixture
async def server(running_server: NatsProcess) -> NatsProcess:
    await _empty(running_server)
    return running_server


@pytest.fixture
async def vendor() -> AsyncIterator[StreamVendor]:
    async with StreamVendor() as started:
        yield started


async def test_ticks_reach_the_stream_in_order_in_bounded_batches(server: NatsProcess, vendor: StreamVendor) -> None:
    async with collecting(server, vendor, batch_ticks=64) as world:
        connection = await vendor.subscribed()
        assert connection.path == "/crypto"
        assert sorted(connection.topics) == ["XQ.BTC/USD", "XQ.ETH/USD", "XT.BTC/USD", "XT.ETH/USD"]
        for begin in range(0, 1000, 100):
            await connection.send(*(trade(number) for number in range(begin, begin + 100)))
        await connection.send(trade(1, "ETH-USD"))
        await until(lambda: world.collector.health().ticks == 1001)
        seen = await world.seen()
        assert await world.prices() == list(range(1000))
        assert await world.prices("ETHUSD") == [1.0]
        assert max(each.headers.rows for each in seen) <= 64
        assert len(seen) < 200, "ticks travel in batches"
        for each in seen:
            headers = each.headers
            assert headers.collector_id == world.collector.collector_id
            assert (headers.epoch, headers.source, headers.symbol) == (
                world.collector.health().epoch,
                "vendor_stream",
                "BTCUSD",
            )
            assert headers.first_ts == each.frame.get_column("ts").min()
            assert headers.stages["received"] <= headers.stages["published"]
        assert len({each.headers.session_id for each in seen}) == 1
        assert len({each.headers.correlation_id for each in seen}) == len(seen)
        assert len({each.headers.batch_id for each in seen}) == len(seen)


async def test_a_single_tick_does_not_wait_for_others(server: NatsProcess, vendor: StreamVendor) -> None:
    async with collecting(server, vendor, batch_ms=40) as world:
        connection = await vendor.subscribed()
        for number in range(10):
            await connection.send(trade(number))
            await asyncio.sleep(0.1)
        await until(lambda: world.collector.health().ticks == 10)
        waits = [each.headers.stages["published"] - each.headers.stages["received"] for each in await world.seen()]
        assert min(waits) >= 35, "it waits for company"
        assert sorted(waits)[len(waits) // 2] < 250, "but not for long"


async def test_a_quiet_symbol_is_proven_quiet(server: NatsProcess, vendor: StreamVendor) -> None:
    async with collecting(server, vendor, heartbeat_s=0.15) as world:
        connection = await vendor.subscribed()
        await connection.send(trade(1))
        await until(lambda: world.collector.health().heartbeats >= 24)
        for symbol in ("BTCUSD", "ETHUSD"):
            seen = await world.seen(symbol, heartbeats=True)
            alive = [each.headers.alive_at for each in seen]
            assert alive == sorted(alive)
            assert alive[-1] - seen[0].headers.session_started > timedelta(milliseconds=300)
            assert len({each.headers.session_id for each in seen}) == 1
            assert [each.headers.number for each in seen] == list(range(1, len(seen) + 1))
            assert seen[-1].headers.heartbeat
            assert all(each.headers.lost_from is None for each in seen)
            # A sign of life is never ahead of the time.
            assert all(to_ms(each.headers.alive_at) <= each.headers.stages["published"] for each in seen)


async def test_nothing_is_proven_before_the_subscription_is_acknowledged(
    server: NatsProcess, vendor: StreamVendor
) -> None:
    vendor.acknowledges = lambda topic: topic == "XT.BTC/USD"
    async with collecting(server, vendor, heartbeat_s=0.1, ack_timeout_s=0.3) as world:
        connection = await vendor.subscribed()
        await connection.send(
            {"ev": "XQ", "pair": "ETH-USD", "bp": 1, "ap": 2, "t": time.time_ns() // 1_000_000, "x": 1}
        )
        await until(lambda: world.collector.health().streams[0].acks_missing)
        seen = await world.seen("ETHUSD", heartbeats=True)
        assert [each.headers.rows for each in seen] == [1]
        assert seen[0].headers.session_started == seen[0].headers.alive_at
        assert await world.seen("BTCUSD", heartbeats=True)
        assert world.collector.health().streams[0].acks_missing == ("XQ.BTC/USD", "XQ.ETH/USD", "XT.ETH/USD")
        assert any("XT.ETH/USD" in problem for problem in world.collector.health().problems)
        vendor.acknowledges = lambda topic: True
        await until(lambda: not world.collector.health().streams[0].acks_missing)
        await until(lambda: world.collector.health().healthy)


@pytest.mark.parametrize("clean", [True, False], ids=["clean close", "cut"])
async def test_a_disconnect_is_recorded_for_every_symbol(
    server: NatsProcess, vendor: StreamVendor, clean: bool
) -> None:
    async with collecting(server, vendor, heartbeat_s=0.1) as world:
        connection = await vendor.subscribed()
        await connection.send(trade(1), trade(2, "ETH-USD"))
        await until(lambda: world.collector.health().ticks == 2)
        before = from_ms(time.time_ns() // 1_000_000)
        if clean:
            await connection.socket.close(1000, "good bye")
        else:
            connection.cut()
        connection = await vendor.subscribed(1)
        await connection.send(trade(3))
        losses = await world.losses(2)
        after = from_ms(time.time_ns() // 1_000_000)
        assert [(loss.symbol, loss.cause) for loss in losses] == [("BTCUSD", "disconnect"), ("ETHUSD", "disconnect")]
        await until(lambda: world.collector.health().ticks == 3)
        first, second = await world.seen()
        assert first.headers.session_id == losses[0].session_id != second.headers.session_id
        assert losses[0].start < before < losses[0].end <= after
        # In the stream itself the next session tells of the loss, too.
        assert second.headers.lost_from == losses[0].start
        assert second.headers.session_started == losses[0].end
        assert world.collector.health().losses == {"disconnect": 2}


async def test_silence_is_a_loss_from_the_last_event_on(server: NatsProcess, vendor: StreamVendor) -> None:
    async with collecting(server, vendor, BTC, silence_s=1.6) as world:
        connection = await vendor.subscribed()
        await connection.send(trade(1))
        await until(lambda: world.collector.health().ticks == 1)
        last = (await world.seen())[0].headers.last_ts
        assert last is not None
        await vendor.subscribed(1)
        (loss,) = await world.losses(1)
        assert loss.cause == "silence"
        assert loss.start <= last
        assert loss.end - loss.start >= timedelta(seconds=1.6)


async def test_half_a_frame_is_a_loss_of_every_symbol(server: NatsProcess, vendor: StreamVendor) -> None:
    async with collecting(server, vendor) as world:
        connection = await vendor.subscribed()
        await connection.send(trade(1))
        await connection.socket.send('[{"ev":"XT","pair":"BTC-USD","p":')
        await connection.send(trade(3))
        losses = await world.losses(2)
        assert {(loss.symbol, loss.cause) for loss in losses} == {("BTCUSD", "unreadable"), ("ETHUSD", "unreadable")}
        await until(lambda: world.collector.health().ticks == 2)
        first, second = await world.seen()
        assert first.headers.session_id != second.headers.session_id
        assert len(vendor.connections) == 1, "the connection is kept"


class Outlet:
    """A way out that can be closed."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.batches: list[EncodedTicks] = []

    async def publish(self, batch: EncodedTicks) -> None:
        if not self.open.is_set():
            await asyncio.sleep(0.01)
            raise BusUnreachable("closed for the test")
        self.batches.append(batch)


async def test_an_overflow_drops_counts_and_records(server: NatsProcess, vendor: StreamVendor) -> None:
    outlet = Outlet()
    async with collecting(server, vendor, queue=100, batch_ticks=40, options={"outlet": outlet}) as world:
        connection = await vendor.subscribed()
        await connection.send(trade(0, "ETH-USD"))
        await until(lambda: world.collector.health().ticks == 1)
        outlet.open.clear()
        sent = 0
        while world.collector.health().dropped < 300:
            await connection.send(*(trade(number) for number in range(sent, sent + 50)))
            sent += 50
            await asyncio.sleep(0.01)
        assert world.collector.health().queue == 100, "memory is bounded"
        assert world.collector.health().gaps == ("BTCUSD",)
        outlet.open.set()
        await until(lambda: world.collector.health().queue == 0)
        await connection.send(trade(10_000))
        (loss,) = await world.losses(1)
        await until(lambda: world.collector.health().queue == 0)
        batches = [each for each in outlet.batches if each.headers.symbol == "BTCUSD" and each.headers.rows]
        kept = sum(each.headers.rows for each in batches)
        assert kept + world.collector.health().dropped == sent + 1
        assert (loss.symbol, loss.cause) == ("BTCUSD", "overflow")
        assert len({each.headers.session_id for each in batches}) == 2
        # No batch of either session claims a moment of the loss.
        for each in (each for each in outlet.batches if each.headers.symbol == "BTCUSD"):
            headers = each.headers
            assert headers.alive_at <= loss.start + timedelta(seconds=1) or headers.session_started >= loss.end
        others = {each.headers.session_id for each in outlet.batches if each.headers.symbol == "ETHUSD"}
        assert len(others) == 1, "a symbol that lost nothing keeps its session"


async def test_a_quiet_symbol_whose_tick_was_dropped_begins_anew(server: NatsProcess, vendor: StreamVendor) -> None:
    outlet = Outlet()
    async with collecting(server, vendor, queue=10, heartbeat_s=0.1, options={"outlet": outlet}) as world:
        connection = await vendor.subscribed()
        outlet.open.clear()
        await connection.send(*(trade(number) for number in range(20)), trade(1, "ETH-USD"))
        await until(lambda: world.collector.health().dropped == 11)
        outlet.open.set()
        losses = await world.losses(2)
        assert [(loss.symbol, loss.cause) for loss in losses] == [("BTCUSD", "overflow"), ("ETHUSD", "overflow")]
        assert world.collector.health().gaps == ()


async def test_an_outage_of_nats_is_borne_in_memory() -> None:
    with NatsProcess() as server:
        await _empty(server)
        async with StreamVendor() as vendor, collecting(server, vendor) as world:
            connection = await vendor.subscribed()
            await connection.send(*(trade(number) for number in range(10)))
            await until(lambda: world.collector.health().ticks == 10)
            server.kill()
            for begin in range(10, 110, 10):
                await connection.send(*(trade(number) for number in range(begin, begin + 10)))
                await asyncio.sleep(0.02)
            await until(lambda: "no connection to NATS" in world.collector.health().problems)
            assert world.collector.health().queue >= 100
            server.start()
            await until(lambda: world.collector.health().ticks == 110, timeout=30)
            assert await world.prices() == list(range(110))
            assert len({each.headers.session_id for each in await world.seen()}) == 1
            assert world.collector.health().losses == {}
            await until(lambda: world.collector.health().healthy)


async def test_stopping_publishes_what_waits_and_gives_up_the_lease(server: NatsProcess, vendor: StreamVendor) -> None:
    async with collecting(server, vendor, batch_ms=500) as world:
        connection = await vendor.subscribed()
        await connection.send(*(trade(number) for number in range(7)))
        await until(lambda: world.collector.health().queue == 7)
        await world.end()
        assert await world.prices() == list(range(7))
        assert world.collector.health().state == "stopped"
        lease = Lease(world.bus, "collector.default", "next", ttl_s=2.0)
        assert await asyncio.wait_for(lease.acquire(), 1) > world.collector.health().epoch
        await lease.release()


async def test_a_second_collector_stands_by_and_takes_over(server: NatsProcess, vendor: StreamVendor) -> None:
    async with collecting(server, vendor) as first:
        connection = await vendor.subscribed()
        await connection.send(trade(1))
        await until(lambda: first.collector.health().ticks == 1)
        async with collecting(server, vendor) as second:
            await asyncio.sleep(0.5)
            assert second.collector.health().state == "standby"
            assert second.collector.health().healthy
            assert len(vendor.connections) == 1, "one connection a key: the one that stands by has none"
            await first.end()
            connection = await vendor.subscribed(1)
            await connection.send(trade(2))
            await until(lambda: second.collector.health().ticks == 1)
            one, two = await second.seen()
            assert 0 < one.headers.epoch < two.headers.epoch
            losses = await second.losses(2)
            assert {loss.cause for loss in losses} == {"lease"}
            last = [
                each.headers for each in await first.seen(heartbeats=True) if each.headers.epoch == one.headers.epoch
            ][-1]
            assert losses[0].start == last.alive_at - LOSS_MARGIN
            assert losses[0].end == two.headers.session_started
            assert losses[0].session_id == last.session_id
            assert two.headers.lost_from == losses[0].start


async def test_a_collector_that_dies_is_followed(server: NatsProcess, vendor: StreamVendor) -> None:
    async with collecting(server, vendor) as first:
        await (await vendor.subscribed()).send(trade(1))
        await until(lambda: first.collector.health().ticks == 1 and first.collector.health().heartbeats >= 2)
        await first.bus.nc.close()  # nothing that it does reaches NATS any more
        async with collecting(server, vendor) as second:
            await until(lambda: second.collector.health().state == "running")
            assert second.collector.health().epoch > first.collector.health().epoch
            assert {loss.cause for loss in await second.losses(2)} == {"lease"}


async def test_a_lost_lease_stops_publishing_at_once(server: NatsProcess, vendor: StreamVendor) -> None:
    async with collecting(server, vendor, heartbeat_s=0.1) as world:
        connection = await vendor.subscribed()
        await connection.send(trade(1))
        await until(lambda: world.collector.health().ticks == 1)
        epoch = world.collector.health().epoch
        bucket = await world.bus.js.key_value("leases_2000ms")
        await bucket.put("collector=2Edefault", b'{"holder":"usurper","instance":"x","epoch":9}')
        await until(lambda: world.collector.health().state == "standby")
        count = len(await world.seen(heartbeats=True))
        await asyncio.sleep(0.5)
        assert len(await world.seen(heartbeats=True)) == count
        assert not world.collector.health().streams[0].connected
        # The usurper renews nothing, so its lease ends, and the next term of this one has a higher epoch.
        await until(lambda: world.collector.health().state == "running")
        assert world.collector.health().epoch > epoch


async def test_a_refused_key_ends_the_collector(server: NatsProcess, vendor: StreamVendor) -> None:
    vendor.on_auth = lambda number, key: [status("auth_failed", "authentication failed")]
    async with collecting(server, vendor) as world:
        with pytest.raises(VendorAuthError, match="POLYGON_API_KEY") as raised:
            await asyncio.wait_for(world.task, 15)
        assert KEY not in str(raised.value)
        assert len(vendor.connections) == 1
        lease = Lease(world.bus, "collector.default", "next", ttl_s=2.0)
        assert await asyncio.wait_for(lease.acquire(), 1), "the lease was given up"
        await lease.release()


async def test_a_market_that_the_plan_lacks_does_not_end_the_others(server: NatsProcess, vendor: StreamVendor) -> None:
    vendor.on_auth = lambda number, key: [
        status("auth_failed" if vendor.connections[number].path == "/forex" else "auth_success")
    ]
    async with collecting(server, vendor, BTC, EUR) as world:
        await until(lambda: any("forex" in problem for problem in world.collector.health().problems))
        connection = next(each for each in vendor.connections if each.path == "/crypto")
        await asyncio.wait_for(connection.subscribed.wait(), 10)
        await connection.send(trade(1), quote())
        await until(lambda: world.collector.health().ticks == 1)
        assert not world.task.done()
        assert not world.collector.health().healthy


async def test_input_without_progress_is_unhealthy(server: NatsProcess, vendor: StreamVendor) -> None:
    outlet, live = Outlet(), LiveSettings(unhealthy_after_s=0.3)
    async with collecting(server, vendor, options={"outlet": outlet}, live=live) as world:
        connection = await vendor.subscribed()
        await until(lambda: world.collector.health().healthy)
        outlet.open.clear()
        await connection.send(trade(1))
        await until(lambda: any("without progress" in problem for problem in world.collector.health().problems))
        outlet.open.set()
        await until(lambda: world.collector.health().healthy)


async def test_one_symbol_that_is_stuck_is_named_although_the_others_go_on(
    server: NatsProcess, vendor: StreamVendor
) -> None:
    class Stuck(Outlet):
        async def publish(self, batch: EncodedTicks) -> None:
            if batch.headers.symbol == "BTCUSD":
                await super().publish(batch)

    outlet, live = Stuck(), LiveSettings(unhealthy_after_s=0.3)
    async with collecting(server, vendor, options={"outlet": outlet}, live=live) as world:
        connection = await vendor.subscribed()
        await connection.send(trade(1), trade(1, "ETH-USD"))
        await until(lambda: world.collector.health().ticks == 2)
        outlet.open.clear()
        number = 2

        async def stuck() -> bool:
            nonlocal number
            number += 1
            await connection.send(trade(number), trade(number, "ETH-USD"))
            await asyncio.sleep(0.02)
            return any("without progress" in problem for problem in world.collector.health().problems)

        async with asyncio.timeout(10):
            while not await stuck():
                pass
        (problem,) = world.collector.health().problems
        assert problem.endswith(": BTCUSD"), "ETHUSD goes on"
        assert world.collector.health().stuck_s > 0.3
        outlet.open.set()
        await until(lambda: world.collector.health().healthy)
        await until(lambda: world.collector.health().stuck_s == 0.0, "nothing waits any more")


async def test_losses_wait_for_a_store_that_is_away(server: NatsProcess, vendor: StreamVendor) -> None:
    class Sink:
        away = True
        kept: list[LossInterval] = []  # noqa: RUF012

        async def record(self, loss: LossInterval) -> None:
            if self.away:
                raise StoreUnreachable("away for the test")
            self.kept.append(loss)

    sink = Sink()
    async with collecting(server, vendor, options={"losses": sink}) as world:
        (await vendor.subscribed()).cut()
        await vendor.subscribed(1)
        await until(lambda: world.collector.health().losses_waiting == 2)
        assert not world.collector.health().healthy
        sink.away = False
        await until(lambda: world.collector.health().losses_waiting == 0)
        assert [loss.symbol for loss in sink.kept] == ["BTCUSD", "ETHUSD"]


async def test_without_instruments_or_a_key_nothing_starts(server: NatsProcess, vendor: StreamVendor) -> None:
    nc = await connect(server.settings, "test")
    bus = BusSession(nc, nc.jetstream())
    with pytest.raises(SettingsError):
        Collector(bus, settings(server, vendor), [])
    given = settings(server, vendor)
    without = given.model_copy(update={"vendor": given.vendor.model_copy(update={"api_key": SecretStr("")})})
    with pytest.raises(VendorAuthError, match="POLYGON_API_KEY"):
        Collector(bus, without, [ETH])
    assert await stored(bus, "ETHUSD") == []
    await nc.close()


async def test_a_clock_that_is_wrong_is_shown_and_ticks_are_taken_all_the_same(
    server: NatsProcess, vendor: StreamVendor
) -> None:
    async with collecting(server, vendor, options={"clock": lambda: now_ms() - 90_000}) as world:
        connection = await vendor.subscribed()
        await connection.send(trade(1))
        await until(lambda: world.collector.health().ticks == 1)
        health = world.collector.health()
        [problem] = health.problems
        assert re.fullmatch(r"this machine's clock is (8[0-9]|90) s behind the vendor's: set it \(NTP\)", problem)
        assert -90.5 < health.streams[0].clock_error_s < -80
        [one] = await world.seen()
        assert abs(to_ms(one.headers.session_started) - now_ms()) < 20_000, "by the vendor's clock"

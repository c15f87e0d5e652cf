"""A collector whose NATS goes away: ticks go to disk, under whose epoch, and what is said of those given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from market_pipeline.bus.connection import connect
from market_pipeline.bus.spool import spool_status
from market_pipeline.bus.spool.folder import segments_of
from market_pipeline.bus.spool.record import scan
from market_pipeline.bus.spooling import spooling
from market_pipeline.bus.streams import ensure_streams
from market_pipeline.bus.tick_numbers import BatchNumbers
from market_pipeline.live.collector import Collector
from market_pipeline.live.collector_service import collector_facts
from market_pipeline.settings import Settings, SpoolSettings
from market_pipeline_tests.bus.tick_batches import EpochFence
from market_pipeline_tests.live import collecting as bench
from market_pipeline_tests.live.collecting import BTC, Seen, collecting, trade, until
from market_pipeline_tests.servers import NatsProcess
from market_pipeline_tests.vendors.stream_vendor import Connection, StreamVendor


@pytest.fixture
def server() -> Iterator[NatsProcess]:
    with NatsProcess() as running:
        yield running


@pytest.fixture
async def vendor(server: NatsProcess) -> AsyncIterator[StreamVendor]:
    nc = await connect(server.settings, "test")
    await ensure_streams(nc.jetstream(), scale=1 / 16)
    await nc.close()
    async with StreamVendor() as started:
        yield started


def spooled(server: NatsProcess) -> int:
    return sum(each.records for each in spool_status(server.home / "spool"))


def facts(collector: Collector) -> dict[str, Any]:
    return dict(collector.health().spool)


async def send(connection: Connection, begin: int, end: int) -> None:
    for number in range(begin, end, 10):
        await connection.send(*(trade(each) for each in range(number, min(end, number + 10))))
        await asyncio.sleep(0.01)


async def test_an_outage_longer_than_the_lease_is_borne_on_disk_without_a_loss(
    server: NatsProcess, vendor: StreamVendor
) -> None:
    async with collecting(server, vendor, BTC, queue=150, batch_ticks=20, lease_ttl_s=1.5) as world:
        connection = await vendor.subscribed()
        await send(connection, 0, 10)
        await until(lambda: world.collector.health().ticks == 10)
        epoch = world.collector.health().epoch
        server.kill()
        # Memory bears the seconds until it is clear that NATS is away.
        await until(lambda: "the lease is not held" in world.collector.health().problems)
        await until(lambda: facts(world.collector)["spool_spooled"] > 0)
        for begin in range(10, 1010, 100):  # many times what memory may hold
            await send(connection, begin, begin + 100)
            await until(lambda: world.collector.health().queue < 20)
        await until(lambda: world.collector.health().ticks == 1010)
        health = world.collector.health()
        assert (health.dropped, health.stuck_s) == (0, 0.0)
        assert any("wait in the spool" in problem for problem in health.problems)
        shown = collector_facts(health)
        assert int(shown["spool_waiting"]) > 0
        assert "breaker_publish" in shown
        assert spooled(server) > 20
        server.start()
        await until(lambda: facts(world.collector)["spool_waiting"] == 0, timeout=30)
        await send(connection, 1010, 1020)
        await until(lambda: world.collector.health().ticks == 1020)
        await until(lambda: world.collector.health().healthy)
        assert await world.prices() == list(range(1020))
        seen = await world.seen()
        assert {each.headers.epoch for each in seen} == {epoch}
        assert len({each.headers.session_id for each in seen}) == 1
        assert world.collector.health().losses == {}


async def test_a_collector_that_is_stopped_while_nats_is_away_leaves_its_ticks_to_the_next_one(
    server: NatsProcess, vendor: StreamVendor
) -> None:
    async with collecting(server, vendor, BTC) as first:
        connection = await vendor.subscribed()
        await send(connection, 0, 10)
        await until(lambda: first.collector.health().ticks == 10)
        server.kill()
        await send(connection, 10, 60)
        await until(lambda: first.collector.health().ticks == 60)
        await first.end()
    waiting = spool_status(server.home / "spool")
    assert [each.adoptable for each in waiting] == [True]
    server.start()
    async with collecting(server, vendor, BTC) as second:
        connection = await vendor.subscribed(1)
        await send(connection, 60, 70)
        await until(lambda: second.collector.health().ticks == 10)
        assert await second.prices() == list(range(70))
        seen = await second.seen()
        # What the first one left came before the first word of the second: no consumer drops it.
        fence = EpochFence()
        assert all(fence.admits(each.headers) for each in seen)
        assert len({each.headers.epoch for each in seen}) == 2
        (loss,) = await second.losses(1)
        last_of_first = [each.headers for each in await second.seen(heartbeats=True)]
        alive = max(each.alive_at for each in last_of_first if each.epoch == seen[0].headers.epoch)
        assert loss.start == alive - timedelta(seconds=1), "only the time without a collector is lost"
    assert spool_status(server.home / "spool") == []


async def test_a_record_that_is_damaged_on_disk_lacks_among_the_numbers(
    server: NatsProcess, vendor: StreamVendor
) -> None:
    """What consumers see of it is all that there is to see: the session's next batch claims that nothing lacks."""
    async with collecting(server, vendor, BTC) as first:
        connection = await vendor.subscribed()
        await send(connection, 0, 10)
        await until(lambda: first.collector.health().ticks == 10)
        server.kill()
        for begin in range(10, 110, 10):
            await send(connection, begin, begin + 10)
            await until(lambda begin=begin: first.collector.health().ticks == begin + 10)
        await first.end()
    (segment,) = segments_of(spool_status(server.home / "spool")[0].path)
    data = bytearray(segment.read_bytes())
    with_ticks = [each for each in scan(bytes(data)).records if each.payload]
    data[data.index(with_ticks[len(with_ticks) // 2].payload)] ^= 0x55
    segment.write_bytes(data)
    server.start()
    async with collecting(server, vendor, BTC) as second:
        connection = await vendor.subscribed(1)
        await send(connection, 110, 120)
        await until(lambda: second.collector.health().ticks == 10)
        seen = await second.seen(heartbeats=True)
    missing = set(range(120)) - {price for each in seen if each.headers.rows for price in each.frame["price"]}
    assert missing
    (hole,) = holes(seen)
    before = max(each.frame["ts"].max() for each in seen if each.headers.rows and each.frame["price"][0] < min(missing))
    after = min(each.frame["ts"].min() for each in seen if each.headers.rows and each.frame["price"][0] > max(missing))
    assert hole[0] <= before, "from before the last tick that came"
    assert hole[1] >= after, "to behind the next one"


def holes(seen: list[Seen]) -> list[tuple[datetime, datetime]]:
    """Return what a consumer misses by the numbers of batches."""
    numbers = BatchNumbers()
    return [missed for each in seen if (missed := numbers.missed(each.headers)) is not None]


async def test_ticks_that_come_after_another_got_the_lease_are_dropped_by_consumers_and_told_as_lost(
    server: NatsProcess, vendor: StreamVendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines, each with a disk of its own: nobody can wait for what the other one has on it."""
    other_disk = SpoolSettings(folder=server.home / "other", min_free_bytes=0)
    with monkeypatch.context() as patch:
        spool_in(patch, other_disk)
        async with collecting(server, vendor, BTC, lease_ttl_s=1.5) as first:
            connection = await vendor.subscribed()
            await send(connection, 0, 10)
            await until(lambda: first.collector.health().ticks == 10)
            server.kill()
            await send(connection, 10, 30)
            await until(lambda: first.collector.health().ticks == 30)
            await first.end()
    server.start()
    async with collecting(server, vendor, BTC, lease_ttl_s=1.5) as second:
        connection = await vendor.subscribed(1)
        await send(connection, 100, 110)
        await until(lambda: second.collector.health().ticks == 10)
        bridge = Settings(nats=server.settings, spool=other_disk)
        async with spooling(second.bus, bridge, "bridge") as publisher:
            assert await publisher.settle(20)
        fence = EpochFence()
        seen = await second.seen()
        admitted = {price for each in seen if fence.admits(each.headers) for price in each.frame["price"]}
        assert {price for each in seen for price in each.frame["price"]} == {*range(30), *range(100, 110)}
        assert admitted == {*range(10), *range(100, 110)}, "late words of a lower epoch count for nothing"
        (loss,) = await second.losses(1)
        dropped = [row["ts"] for each in seen for row in each.frame.rows(named=True) if row["price"] not in admitted]
        assert all(loss.start <= at < loss.end for at in dropped), "and somebody was told"


def spool_in(patch: pytest.MonkeyPatch, spool: SpoolSettings) -> None:
    """Give the collectors that are started from now on another spool."""
    original: Callable[..., Settings] = bench.settings

    def changed(*args: Any, **kw: Any) -> Settings:
        return original(*args, **kw).model_copy(update={"spool": spool})

    patch.setattr(bench, "settings", changed)


async def test_a_full_spool_that_gives_up_the_oldest_says_so_in_the_stream_and_to_repair(
    server: NatsProcess, vendor: StreamVendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SpoolSettings(
        folder=server.home / "spool", max_bytes=1024**2, segment_bytes=64 * 1024, min_free_bytes=0, full="oldest"
    )
    spool_in(monkeypatch, small)
    async with collecting(server, vendor, BTC, batch_ticks=10, lease_ttl_s=1.5) as world:
        connection = await vendor.subscribed()
        await send(connection, 0, 10)
        await until(lambda: world.collector.health().ticks == 10)
        server.kill()
        sent, end = 10, time.monotonic() + 60
        while facts(world.collector)["spool_given_up"] < 50:
            assert time.monotonic() < end
            await send(connection, sent, sent + 200)
            sent += 200
        await until(lambda: world.collector.health().queue == 0)
        server.start()
        await until(lambda: facts(world.collector)["spool_waiting"] == 0, timeout=30)
        await send(connection, sent, sent + 10)
        await until(lambda: world.collector.health().ticks == sent + 10)
        prices = await world.prices()
        missing = sorted(set(range(sent + 10)) - set(prices))
        assert missing, "something was given up"
        assert prices == sorted(prices)
        assert missing == list(range(missing[0], missing[-1] + 1)), "the oldest of what was spooled"
        seen = await world.seen(heartbeats=True)
        told = [each for each in seen if each.headers.lost_from is not None]
        assert told
        assert holes(seen) == [], "it is told, and not by the numbers a second time"
        assert max(each.headers.covers for each in seen) > 1
        # It is told before anything that follows the loss, and not a moment of what was kept is called lost.
        first_after = next(each.seq for each in seen if each.headers.rows and each.frame["price"][0] > missing[-1])
        assert max(each.seq for each in told) < first_after
        losses = await world.losses(len(told))
        assert sorted((loss.start, loss.end) for loss in losses) == sorted(
            (each.headers.lost_from, each.headers.session_started) for each in told
        )
        after = next(each for each in seen if each.seq == first_after)
        before = [each for each in seen if each.headers.rows and each.frame["price"][0] < missing[0]]
        assert before[-1].frame["ts"].max() <= min(loss.start for loss in losses)
        assert after.frame["ts"].min() >= max(loss.end for loss in losses) - timedelta(milliseconds=1)

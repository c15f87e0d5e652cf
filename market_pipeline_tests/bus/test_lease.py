"""The lease on a real server: one holder, epochs that count, outages that are borne."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from nats.aio.client import Client

from market_pipeline.bus.connection import connect
from market_pipeline.bus.lease import Lease
from market_pipeline.bus.losses import LossBucket, LossInterval
from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline_tests.servers import NatsProcess, die_with_parent

TTL = 1.0


@pytest.fixture
async def bus(nc: Client) -> BusSession:
    return BusSession(nc, nc.jetstream())


@pytest.fixture
async def own_bus(own_server: NatsProcess) -> AsyncIterator[BusSession]:
    nc = await connect(own_server.settings, "test")
    yield BusSession(nc, nc.jetstream())
    await nc.close()


async def test_one_holder_and_a_take_over_at_once_after_a_release(bus: BusSession) -> None:
    first, second = Lease(bus, "one", "a", ttl_s=TTL), Lease(bus, "one", "b", ttl_s=TTL)
    epoch = await first.acquire()
    assert epoch > 0
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(2 * TTL)
    assert first.held, "it is renewed for longer than its time to live"
    assert not second.held
    assert not waiting.done()
    await first.release()
    released = time.monotonic()
    assert not first.held
    assert await asyncio.wait_for(waiting, 10) > epoch
    assert time.monotonic() - released < TTL
    await second.release()


async def test_leases_of_other_names_are_others(bus: BusSession) -> None:
    leases = [Lease(bus, name, "a", ttl_s=TTL) for name in ("x.forex", "x.crypto")]
    for lease in leases:
        assert await asyncio.wait_for(lease.acquire(), 5)
    assert all(lease.held for lease in leases)
    for lease in leases:
        await lease.release()


async def test_who_holds_a_lease_for_another_work_is_told(bus: BusSession) -> None:
    first = Lease(bus, "sets", "a", ttl_s=TTL, work="EURUSD")
    same, other = (Lease(bus, "sets", "b", ttl_s=TTL, work=work) for work in ("EURUSD", "BTCUSD"))
    await first.acquire()
    waiting = [asyncio.create_task(each.acquire()) for each in (same, other)]
    await asyncio.sleep(TTL / 2)
    assert (same.other_work, other.other_work) == ("", "a")
    waiting[0].cancel()
    await first.release()
    await asyncio.wait_for(waiting[1], 10)
    assert other.other_work == ""
    await other.release()


HOLDER = """
import asyncio, sys
import structlog
from pydantic import SecretStr
from market_pipeline.bus.lease import Lease
from market_pipeline.bus.session import open_bus
from market_pipeline.settings import NatsSettings

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main():
    url, user, password, ttl = sys.stdin.readline().split()
    async with open_bus(NatsSettings(url=url, user=user, password=SecretStr(password)), "holder") as bus:
        lease = Lease(bus, "process", "child", ttl_s=float(ttl))
        print(await lease.acquire(), flush=True)
        while True:
            print("held" if lease.held else "not held", flush=True)
            if lease.lost.is_set():
                return
            await asyncio.sleep(0.02)

asyncio.run(main())
"""


def start_holder(server: NatsProcess) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    assert holder.stdin is not None
    holder.stdin.write(f"{server.url} {server.user} {server.password} {TTL}\n")
    holder.stdin.flush()
    return holder


async def test_a_frozen_holder_loses_the_lease_and_knows_it_when_it_wakes(bus: BusSession, server: NatsProcess) -> None:
    holder = start_holder(server)
    try:
        assert holder.stdout is not None
        epoch = int(await asyncio.to_thread(holder.stdout.readline))
        os.kill(holder.pid, signal.SIGSTOP)
        frozen = time.monotonic()
        lease = Lease(bus, "process", "parent", ttl_s=TTL)
        assert await asyncio.wait_for(lease.acquire(), 20) > epoch
        assert time.monotonic() - frozen > TTL / 2
        os.kill(holder.pid, signal.SIGCONT)
        lines = (await asyncio.to_thread(holder.communicate, timeout=20))[0].split("\n")
        # The line that it was about to print when it was frozen may still say so.
        assert lines[-2] == "not held"
        assert lease.held
        await lease.release()
    finally:
        holder.kill()
        holder.wait()


async def test_a_killed_holder_is_followed_after_its_time_to_live(bus: BusSession, server: NatsProcess) -> None:
    holder = start_holder(server)
    assert holder.stdout is not None
    epoch = int(await asyncio.to_thread(holder.stdout.readline))
    holder.kill()
    holder.wait()
    lease = Lease(bus, "process", "parent", ttl_s=TTL)
    assert await asyncio.wait_for(lease.acquire(), 20) > epoch
    await lease.release()


async def test_an_outage_suspends_the_lease_and_the_same_epoch_goes_on(
    own_bus: BusSession, own_server: NatsProcess
) -> None:
    lease = Lease(own_bus, "outage", "a", ttl_s=TTL)
    epoch = await lease.acquire()
    own_server.kill()
    await asyncio.sleep(1.5 * TTL)
    assert not lease.held, "nobody can know who holds it"
    assert not lease.lost.is_set()
    own_server.start()
    await asyncio.wait_for(lease.wait_held(), 15)
    assert lease.epoch == epoch
    await lease.release()


async def test_who_held_it_during_the_outage_ends_the_first_one(own_bus: BusSession, own_server: NatsProcess) -> None:
    first = Lease(own_bus, "outage", "a", ttl_s=TTL)
    epoch = await first.acquire()
    # Only the first one's writes fail, as if it alone were cut off.
    renew = first._renew

    async def cut_off() -> bool:
        raise TimeoutError

    first._renew = cut_off  # type: ignore[method-assign]
    second = Lease(own_bus, "outage", "b", ttl_s=TTL)
    epoch, before = await asyncio.wait_for(second.acquire(), 15), epoch
    assert epoch > before
    assert not first.held
    await second.release()
    first._renew = renew  # type: ignore[method-assign]
    await asyncio.wait_for(first.lost.wait(), 15)
    assert not first.held
    assert await asyncio.wait_for(first.acquire(), 15) > epoch
    assert first.held
    await first.release()


async def test_a_wiped_store_gives_no_epoch_again(tmp_path: Path) -> None:
    epochs: list[int] = []
    for folder in ("first", "wiped"):
        with NatsProcess(home=tmp_path / folder) as server:
            async with open_bus(server.settings, "test") as bus:
                for _ in range(2):
                    lease = Lease(bus, "one", "a", ttl_s=TTL)
                    epochs.append(await asyncio.wait_for(lease.acquire(), 15))
                    await lease.release()
    assert epochs == sorted(set(epochs))
    assert len(epochs) == 4


async def test_a_store_wiped_under_a_holder_ends_its_lease_and_the_next_epoch_is_higher(
    own_bus: BusSession, own_server: NatsProcess
) -> None:
    lease = Lease(own_bus, "wiped", "a", ttl_s=TTL)
    epoch = await lease.acquire()
    own_server.kill()
    shutil.rmtree(own_server.home / "store")
    own_server.start()
    await asyncio.wait_for(lease.lost.wait(), 20)
    assert not lease.held
    assert await asyncio.wait_for(lease.acquire(), 20) > epoch
    await lease.release()


async def test_a_clock_that_went_back_gives_higher_epochs_all_the_same(bus: BusSession) -> None:
    epochs = []
    for now in (5_000, 3_000, 5_001, 9_000):
        lease = Lease(bus, "clock", "a", ttl_s=TTL, clock=lambda now=now: now)  # type: ignore[misc]
        epochs.append(await asyncio.wait_for(lease.acquire(), 15))
        await lease.release()
    assert epochs == [5_000, 5_001, 5_002, 9_000]


async def test_never_two_at_once(bus: BusSession) -> None:
    """Five want it, each for a moment, and hold it one after the other."""
    inside = most = 0
    epochs: list[int] = []

    async def want(number: int) -> None:
        nonlocal inside, most
        lease = Lease(bus, "rush", str(number), ttl_s=TTL)
        for _ in range(2):
            epochs.append(await lease.acquire())
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.03)
            inside -= 1
            await lease.release()

    await asyncio.wait_for(asyncio.gather(*(want(number) for number in range(5))), 60)
    assert most == 1
    assert epochs == sorted(set(epochs))
    assert len(epochs) == 10


async def test_losses_are_kept_until_they_are_repaired(bus: BusSession) -> None:
    start = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
    losses = [
        LossInterval("EURUSD", start, start + timedelta(seconds=5), "disconnect", "s1"),
        LossInterval("EURUSD", start + timedelta(hours=1), start + timedelta(hours=2), "overflow", "s2"),
        LossInterval("BRK.B", start, start + timedelta(seconds=5), "unreadable", "s3"),
    ]
    bucket = LossBucket(bus)
    assert await bucket.all() == []
    for loss in [*losses, losses[0]]:
        await bucket.record(loss)
    assert await LossBucket(bus).all() == [losses[2], *losses[:2]]
    await bucket.remove(losses[:1])
    assert await bucket.all() == [losses[2], losses[1]]
    await bucket.remove(losses)
    assert await bucket.all() == []

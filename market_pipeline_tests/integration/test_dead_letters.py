"""Poison among good messages: the good land, each poison is listed with its reason, and a replay lands what can.

`MARKET_PIPELINE_TEST_MESSAGES=100000` runs it at full size: 100,000 good messages and 1,000 of poison (`make poison`).
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import blake2b

import polars as pl
import pytest

from market_pipeline.bus.dead_letter_box import DeadLetterBox
from market_pipeline.bus.dead_letters import Reason, Selection, count_dead_letters
from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.bus.streams import LIVE
from market_pipeline.errors import StoreQueryError
from market_pipeline.live import bridge
from market_pipeline.live.bridge import BridgeWorker
from market_pipeline.stores import open_stores
from market_pipeline.stores.bars import BarStore, BatchRange, SeriesDigest
from market_pipeline_tests.bus.bars import bars
from market_pipeline_tests.integration.world import World
from market_pipeline_tests.poison import KINDS, REFUSED_VOLUME, SUBJECT, Message, one, poison

GOOD = int(os.environ.get("MARKET_PIPELINE_TEST_MESSAGES", "900"))
FULL = GOOD >= 10_000


@dataclass
class Bench:
    """A bridge of LIVE at work."""

    bus: BusSession
    worker: BridgeWorker
    box: DeadLetterBox = field(init=False)

    def __post_init__(self) -> None:
        self.box = DeadLetterBox(self.bus)

    async def drained(self, timeout: float = 60.0) -> None:
        async with asyncio.timeout(timeout):
            while (await self.bus.js.stream_info(LIVE)).state.messages:  # noqa: ASYNC110 — nothing announces it
                await asyncio.sleep(0.05)


@asynccontextmanager
async def bench(world: World, *, symbols: set[str] | None = None) -> AsyncIterator[Bench]:
    stop = asyncio.Event()
    with open_stores(world.settings) as stores:
        async with open_bus(world.settings.nats, "test") as bus:
            await bus.ensure_streams()
            async with bus.consumer(LIVE) as consumer:
                worker = BridgeWorker(
                    consumer, stores.bars, stores.ingest, bus, max_group_batches=256, gather_s=0.05, symbols=symbols
                )
                task = asyncio.create_task(worker.run(stop))
                try:
                    yield Bench(bus, worker)
                finally:
                    stop.set()
                    await asyncio.wait_for(task, 30)


async def publish(bus: BusSession, messages: list[Message]) -> None:
    publisher = bus.publisher()
    for begin in range(0, len(messages), 256):
        await asyncio.gather(
            *(publisher.publish_message(subject, body, head) for subject, body, head in messages[begin : begin + 256])
        )


@pytest.mark.timeout(3600 if FULL else 120)
async def test_poison_is_listed_and_all_else_lands(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if not FULL:
        monkeypatch.setattr(bridge, "MAX_REFUSALS", 2)  # each costs a second of waiting
    each = GOOD // 100 // len(KINDS) + (0 if FULL else 1)
    spoiled = dict.fromkeys(KINDS, each)
    spoiled[Reason.UNREADABLE_PAYLOAD] += (GOOD // 100 - each * len(KINDS)) if FULL else 0
    frame = bars(GOOD + 2 * sum(spoiled.values())).with_columns(volume=pl.lit(5.0))
    good = [one(frame[n : n + 1]) for n in range(GOOD)]
    at, bad = GOOD, []
    for kind, number in spoiled.items():
        for _ in range(number):
            bad.append((kind, poison(kind, frame[at : at + 2])))
            at += 2
    payloads = {kind: {blake2b(message[1]).digest() for k, message in bad if k is kind} for kind in KINDS}
    messages = [(SUBJECT, batch.payload, batch.headers.to_nats()) for batch in good] + [message for _, message in bad]
    random.Random(7).shuffle(messages)

    async with bench(world, symbols={"EURUSD"}) as running:
        world.command(f"ALTER TABLE bars ADD CONSTRAINT poison CHECK volume != {REFUSED_VOLUME}")
        started = time.monotonic()
        await publish(running.bus, messages)
        await running.drained(3000 if FULL else 60)
        seconds = time.monotonic() - started
        print(f"{len(messages):,} messages in {seconds:.1f} s; {running.worker.stats}")

        landed = world.bars("EURUSD", "1m")
        assert landed.height == GOOD + spoiled[Reason.MALFORMED_ROW], "the good row of a batch with a malformed one too"
        assert landed["ts"].is_in(frame["ts"][:GOOD].implode()).sum() == GOOD
        counts = await count_dead_letters(running.bus.js)
        assert counts == {(LIVE, kind.value): number for kind, number in spoiled.items()}
        unread = await running.box.unread()
        assert (unread.counts, unread.total) == (counts, sum(spoiled.values()))
        for kind in KINDS:
            letters = [letter async for letter in running.box.walk(Selection(reason=kind))]
            assert all(letter.first_error and letter.last_error for letter in letters)
            if kind is Reason.INSERT_FAILED:  # others may come twice, with a group that was given back
                assert {letter.attempts for letter in letters} == {bridge.MAX_REFUSALS}
            assert {letter.correlation_id for letter in letters} == {"poison"}
            if kind is not Reason.MALFORMED_ROW:
                assert {blake2b(letter.payload).digest() for letter in letters} == payloads[kind], "untouched"

        # the causes are mended: an instrument is added, the store's rule is gone; the others are as bad as before
        world.command("ALTER TABLE bars DROP CONSTRAINT poison")
        running.worker.symbols = {"EURUSD", "NOSUCH"}
        started = time.monotonic()
        done = await running.box.replay_all(Selection())
        await running.drained(3000 if FULL else 60)
        print(f"{done.replayed:,} replayed in {time.monotonic() - started:.1f} s")
        assert done.refused == spoiled[Reason.MALFORMED_ROW]
        assert all("still malformed (volume: negative)" in why for _, why in done.refusals)
        assert done.replayed == sum(spoiled.values()) - done.refused
        assert world.bars("NOSUCH", "1m").height == 2 * spoiled[Reason.UNKNOWN_SYMBOL]
        refused = world.bars("EURUSD", "1m").filter(pl.col("volume") == REFUSED_VOLUME)
        assert refused.height == 2 * spoiled[Reason.INSERT_FAILED]
        mended = {Reason.UNKNOWN_SYMBOL, Reason.INSERT_FAILED}
        assert await count_dead_letters(running.bus.js) == {
            (LIVE, kind.value): number for kind, number in spoiled.items() if kind not in mended
        }


async def test_a_batch_whose_range_cannot_be_read_is_buried_and_the_others_land(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is asked what it has before anything is inserted: that it refuses one may not stop the others."""
    monkeypatch.setattr(bridge, "MAX_REFUSALS", 2)
    ask = BarStore.series_digests

    def refuse(self: BarStore, ranges: Sequence[BatchRange]) -> list[SeriesDigest]:
        if any(each.symbol == "UNREADABLE" for each in ranges):
            raise StoreQueryError("this range is not read")
        return ask(self, ranges)

    monkeypatch.setattr(BarStore, "series_digests", refuse)
    frame = bars(8).with_columns(volume=pl.lit(5.0))
    good = [one(frame[n : n + 1]) for n in range(8)]
    bad = one(frame[:2].with_columns(symbol=pl.lit("UNREADABLE")))
    messages = [(SUBJECT, each.payload, each.headers.to_nats()) for each in (*good[:3], bad, *good[3:6])]
    async with bench(world) as running:
        await publish(running.bus, messages)
        async with asyncio.timeout(30):
            while world.bars("EURUSD", "1m").height < 6:  # noqa: ASYNC110 — nothing announces it
                await asyncio.sleep(0.05)
        # it is to blame only while the store takes others
        await publish(running.bus, [(SUBJECT, each.payload, each.headers.to_nats()) for each in good[6:]])
        await running.drained()
        [letter] = [letter async for letter in running.box.walk(Selection())]
        assert (letter.reason, letter.last_error) == (Reason.INSERT_FAILED, "this range is not read")
        assert (letter.payload, letter.attempts) == (bad.payload, 2)
    assert world.bars("EURUSD", "1m").height == 8


async def test_a_malformed_row_is_buried_once_the_store_has_the_rest(world: World) -> None:
    """Not before: an outage may last longer than the stream of dead letters knows what it was sent twice."""
    async with bench(world) as running:
        world.command("ALTER TABLE bars ADD CONSTRAINT outage CHECK volume < 0")
        await publish(running.bus, [poison(Reason.MALFORMED_ROW, bars(2).with_columns(volume=pl.lit(5.0)))])
        async with asyncio.timeout(30):
            while running.worker.stats.given_back < 2:  # noqa: ASYNC110 — a plain counter
                await asyncio.sleep(0.05)
        assert await count_dead_letters(running.bus.js) == {}
        world.command("ALTER TABLE bars DROP CONSTRAINT outage")
        await running.drained()
        assert await count_dead_letters(running.bus.js) == {(LIVE, "malformed_row"): 1}
    assert world.bars("EURUSD", "1m").height == 1


async def test_an_outage_never_makes_a_dead_letter(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store refuses every batch, as with a schema that broke, for longer than a message may fail."""
    monkeypatch.setattr(bridge, "MAX_REFUSALS", 2)
    frame = bars(4).with_columns(volume=pl.lit(5.0))
    batches = [one(frame[n : n + 1]) for n in range(4)]
    messages = [(SUBJECT, batch.payload, batch.headers.to_nats()) for batch in batches]

    async def refused_for_long(running: Bench, some: list[Message]) -> None:
        world.command("ALTER TABLE bars ADD CONSTRAINT outage CHECK volume < 0")
        before = running.worker.stats.given_back
        await publish(running.bus, some)
        async with asyncio.timeout(30):
            while running.worker.stats.given_back < before + 3 * len(some):  # noqa: ASYNC110 — a plain counter
                await asyncio.sleep(0.05)
        world.command("ALTER TABLE bars DROP CONSTRAINT outage")
        await running.drained()
        assert await count_dead_letters(running.bus.js) == {}

    async with bench(world) as running:
        await refused_for_long(running, messages[:2])  # a bridge that has not seen the store take anything
        await refused_for_long(running, messages[2:])
        assert running.worker.stats.dead_letters == 0
    assert world.bars("EURUSD", "1m").height == 4

"""Publishing through an outage: a real NATS that stops and comes back, and what lies in its streams afterwards."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from market_pipeline.breaker import Breaker
from market_pipeline.bus.connection import connect
from market_pipeline.bus.envelope import encode_batches
from market_pipeline.bus.publisher import PubAck, Publisher
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.spool import Spool, SpoolRecord, spool_status
from market_pipeline.bus.spool.folder import segments_of
from market_pipeline.bus.spooling import Spooled, SpoolingPublisher
from market_pipeline.bus.streams import HISTORY, MB, ensure_streams
from market_pipeline.errors import PayloadTooLarge, SpoolFull, StreamFull
from market_pipeline.settings import BreakerSettings, Settings, SpoolSettings
from market_pipeline_tests.bus.bars import bars
from market_pipeline_tests.bus.conftest import SCALE
from market_pipeline_tests.servers import NatsProcess

SUBJECT = "history.EURUSD.1m"


def settings(server: NatsProcess, root: Path, **spool: Any) -> Settings:
    return Settings(
        home=root,
        nats=server.settings,
        breaker=BreakerSettings(failures=3, open_s=60),
        spool=SpoolSettings(**{"min_free_bytes": 0, "segment_bytes": 64 * 1024, **spool}),
    )


@asynccontextmanager
async def publishing(
    server: NatsProcess, root: Path, name: str = "test", **spool: Any
) -> AsyncIterator[tuple[SpoolingPublisher, JetStreamContext]]:
    """A spooling publisher that gives up soon, over a connection of its own."""
    nc = await connect(server.settings, "test")
    bus = BusSession(nc, nc.jetstream())
    quick = Publisher(nc, bus.js, retry_for_s=0.3, ack_timeout_s=0.5, wait_full_s=0.5)
    publisher = SpoolingPublisher(bus, settings(server, root, **spool), name, publisher=quick)
    try:
        yield publisher, bus.js
    finally:
        await publisher.close()
        await nc.close()


async def until(condition: Callable[[], object], what: str = "", timeout: float = 20.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.01)


async def stored(js: JetStreamContext, stream: str = HISTORY) -> dict[str, list[bytes]]:
    """What a stream holds, by subject, in its order."""
    state = (await js.stream_info(stream)).state
    found: dict[str, list[bytes]] = {}
    for seq in range(state.first_seq, state.last_seq + 1):
        message = await js.get_msg(stream, seq=seq)
        found.setdefault(message.subject or "", []).append(message.data or b"")
    return found


async def test_a_stream_of_publications_through_outages_arrives_once_and_in_order(
    own_server: NatsProcess, tmp_path: Path
) -> None:
    async with publishing(own_server, tmp_path) as (publisher, js):
        await ensure_streams(js, scale=SCALE)
        subjects = [f"history.S{number}.1m" for number in range(6)]
        counts = dict.fromkeys(subjects, 0)
        spooled = 0
        enough = asyncio.Event()

        async def publish(subject: str) -> None:
            nonlocal spooled
            while not enough.is_set():
                outcome = await publisher.publish_message(subject, b"%d" % counts[subject], {})
                assert outcome.spooled == isinstance(outcome, Spooled)
                counts[subject] += 1
                spooled += outcome.spooled
                await asyncio.sleep(0.005)

        tasks = [asyncio.create_task(publish(subject)) for subject in subjects]
        for _ in range(2):
            await asyncio.sleep(0.3)
            before = spooled
            own_server.kill()
            await until(lambda before=before: spooled > before + 50, "it spools while NATS is away")
            own_server.start()
            await until(lambda: publisher.waiting == 0, "the spool drains")
            acknowledged = publisher.counters.published
            await until(lambda n=acknowledged: publisher.counters.published > n + 20, "it publishes directly again")
        enough.set()
        await asyncio.gather(*tasks)
        assert await publisher.wait_drained(20)
        assert publisher.breaker.state == "closed"
        found = await stored(js)
        for subject in subjects:
            assert found[subject] == [b"%d" % number for number in range(counts[subject])]
        assert spool_status(tmp_path / "spool")[0].records == 0
    assert spool_status(tmp_path / "spool") == [], "an empty folder goes with its owner"


async def test_an_open_breaker_spools_without_waiting_and_a_new_connection_closes_it(
    own_server: NatsProcess, tmp_path: Path
) -> None:
    async with publishing(own_server, tmp_path) as (publisher, js):
        await ensure_streams(js, scale=SCALE)
        own_server.kill()
        for number in range(3):
            assert (await publisher.publish_message(f"history.A{number}.1m", b"x", {})).spooled
        assert publisher.breaker.state == "open"
        started = time.monotonic()
        outcomes = await asyncio.gather(
            *(publisher.publish_message(f"history.B{number}.1m", b"x", {}) for number in range(200))
        )
        assert time.monotonic() - started < 0.3 * 100, "one after the other they would have waited for 60 s"
        assert all(isinstance(each, Spooled) for each in outcomes)
        assert publisher.facts()["spool_waiting"] == 203
        assert any("203 publications wait" in problem for problem in publisher.problems())
        own_server.start()  # long before the breaker's 60 s are over
        assert await publisher.wait_drained(20)
        assert isinstance(await publisher.publish_message("history.A.1m", b"x", {}), PubAck)
        assert sum(map(len, (await stored(js)).values())) == 204
        assert publisher.problems() == []


async def test_what_nats_had_taken_although_its_answer_was_lost_is_not_doubled(
    own_server: NatsProcess, tmp_path: Path
) -> None:
    async with publishing(own_server, tmp_path) as (publisher, js):
        await ensure_streams(js, scale=SCALE)
        own_server.pause()  # what is sent now is read later
        try:
            assert (await publisher.publish_message(SUBJECT, b"x", {"Nats-Msg-Id": "mine"})).spooled
        finally:
            own_server.resume()
        assert await publisher.wait_drained(20)
        assert await stored(js) == {SUBJECT: [b"x"]}
        message = await js.get_msg(HISTORY, seq=1)
        assert (message.headers or {})["Nats-Msg-Id"] == "mine"


async def test_a_full_stream_is_waited_for_and_never_spooled(
    server: NatsProcess, js: JetStreamContext, tmp_path: Path
) -> None:
    await js.update_stream((await js.stream_info(HISTORY)).config.evolve(max_msgs=1))
    async with publishing(server, tmp_path) as (publisher, _):
        await publisher.publish_message(SUBJECT, b"first", {})
        for _ in range(4):
            with pytest.raises(StreamFull):
                await publisher.publish_message(SUBJECT, b"second", {})
        assert publisher.breaker.state == "closed", "it answers"
        assert (publisher.waiting, publisher.facts()["spool_spooled"]) == (0, 0)
        assert not (tmp_path / "spool").exists()


async def test_a_spool_waits_for_a_full_stream_and_drains_when_there_is_room(
    server: NatsProcess, js: JetStreamContext, tmp_path: Path
) -> None:
    await js.update_stream((await js.stream_info(HISTORY)).config.evolve(max_msgs=1))
    async with publishing(server, tmp_path) as (publisher, _):
        for number in range(3):
            await publisher.spool_message(SUBJECT, b"%d" % number, {})
        assert (await publisher.publish_message(SUBJECT, b"3", {})).spooled, "it goes behind what waits"
        await until(lambda: publisher.counters.failed >= 1, "the stream is full")
        assert publisher.waiting == 3
        await js.update_stream((await js.stream_info(HISTORY)).config.evolve(max_msgs=-1))
        assert await publisher.wait_drained(20)
    assert await stored(js) == {SUBJECT: [b"0", b"1", b"2", b"3"]}


async def test_a_full_spool_stops_the_producer_with_one_error_until_there_is_room(
    own_server: NatsProcess, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with publishing(own_server, tmp_path, max_bytes=10 * MB, segment_bytes=MB) as (publisher, js):
        await ensure_streams(js, scale=1 / 16)
        own_server.kill()
        published = refused = 0
        body = os.urandom(100_000)
        started = asyncio.Event()

        async def produce() -> None:
            nonlocal published, refused
            while published < 150:
                try:
                    await publisher.publish_message(SUBJECT, b"%03d" % published + body, {})
                    published += 1
                except SpoolFull:
                    refused += 1
                    started.set()
                    await asyncio.sleep(0.05)

        producing = asyncio.create_task(produce())
        await asyncio.wait_for(started.wait(), 20)
        assert 90 < published < 110
        assert any("no room" in problem for problem in publisher.problems())
        await until(lambda: refused >= 3)
        own_server.start()
        await asyncio.wait_for(producing, 30)
        assert await publisher.wait_drained(20)
        found = await stored(js)
        assert [each[:3] for each in found[SUBJECT]] == [b"%03d" % number for number in range(150)]
    assert capfd.readouterr().out.count("spool_refuses") == 1


async def test_what_a_dead_process_left_is_drained_by_the_next_one_damage_set_aside(
    server: NatsProcess, js: JetStreamContext, tmp_path: Path
) -> None:
    root = tmp_path / "spool"
    dead = Spool(root, "dead", SpoolSettings(min_free_bytes=0))
    for number in range(20):
        payload = b"%02d" % number + secrets.token_bytes(200)
        await dead.append(SpoolRecord(SUBJECT, f"dead-{number}", {}, payload, 1))
    await dead.close()
    ((segment,),) = [segments_of(each) for each in root.iterdir()]
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data[:-10])  # one record in the middle is damaged, the last one torn
    async with (
        publishing(server, tmp_path, "next") as (publisher, _),
        publishing(server, tmp_path, "rival") as (rival, _),
    ):
        publisher.start()
        rival.start()
        assert await publisher.settle(20)
        found = [int(each[:2]) for each in (await stored(js))[SUBJECT]]
        missing = set(range(20)) - set(found)
        assert found == sorted(found)
        assert 19 in missing
        assert len(missing) == 2
        assert publisher.facts()["spool_adopted"] + rival.facts()["spool_adopted"] == 1
        await until(lambda: not spool_status(root)[0].locked, "it is given up")
    (status,) = spool_status(root)
    assert (status.bad, status.records, status.adoptable) == (1, 0, False)


async def test_what_nats_will_never_take_does_not_hold_up_the_rest(
    server: NatsProcess, js: JetStreamContext, tmp_path: Path
) -> None:
    await js.update_stream((await js.stream_info(HISTORY)).config.evolve(max_msg_size=1000))
    async with publishing(server, tmp_path) as (publisher, _):
        await publisher.spool_message(SUBJECT, b"x" * 5000, {})
        await publisher.spool_message(SUBJECT, b"small", {})
        assert await publisher.wait_drained(20)
        assert await stored(js) == {SUBJECT: [b"small"]}
        assert publisher.facts()["spool_refused"] == 1
        with pytest.raises(PayloadTooLarge):
            await publisher.spool_message(SUBJECT, b"x" * 5 * MB, {})
        assert publisher.waiting == 0
    assert spool_status(tmp_path / "spool")[0].bad == 1


async def test_a_batch_keeps_its_envelope_through_the_spool(own_server: NatsProcess, tmp_path: Path) -> None:
    batch = encode_batches(bars(50), correlation_id="corr", run_id="run")[0]
    async with publishing(own_server, tmp_path) as (publisher, js):
        await ensure_streams(js, scale=SCALE)
        own_server.kill()
        assert (await publisher.publish(batch, SUBJECT)).spooled
    own_server.start()
    async with publishing(own_server, tmp_path) as (publisher, js):
        publisher.start()
        assert await publisher.settle(20)
        kept = await js.get_msg(HISTORY, seq=1)
        assert kept.data == batch.payload
        expected = batch.headers.to_nats()
        assert expected.items() <= (kept.headers or {}).items()


def test_the_breaker_takes_a_full_stream_for_an_answer(server: NatsProcess) -> None:
    breaker = Breaker("publish", BreakerSettings(failures=1), answers=(StreamFull,))
    with pytest.raises(StreamFull), breaker.attempt():
        raise StreamFull("full")
    assert breaker.state == "closed"

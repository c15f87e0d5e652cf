from __future__ import annotations

import asyncio
import time

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext

from market_pipeline.bus.connection import connect
from market_pipeline.bus.envelope import BatchHeaders, EncodedBatch, encode_batches
from market_pipeline.bus.limits import message_limit
from market_pipeline.bus.publisher import Publisher, headers_size
from market_pipeline.bus.streams import BRIDGE, HISTORY, MB, ensure_consumer, ensure_streams
from market_pipeline.errors import BusUnreachable, PayloadTooLarge, StreamFull
from market_pipeline_tests.bus.bars import bars
from market_pipeline_tests.bus.conftest import SCALE
from market_pipeline_tests.servers import NatsProcess

SUBJECT = "history.EURUSD.1m"


def noise(rows: int = 7000) -> list[EncodedBatch]:
    """One batch of about 0.4 MB."""
    return encode_batches(bars(rows, random=True), correlation_id="c")


async def test_a_batch_arrives_with_its_headers(nc: Client, js: JetStreamContext) -> None:
    batch = encode_batches(bars(100), correlation_id="corr", run_id="run")[0]
    publisher = Publisher(nc, js)
    ack = await publisher.publish(batch, SUBJECT)
    assert (ack.stream, ack.seq, ack.duplicate) == (HISTORY, 1, False)
    kept = await js.get_msg(HISTORY, seq=1)
    assert kept.data == batch.payload
    headers = BatchHeaders.from_nats(kept.headers)
    stamped = headers.stages["published"]
    assert headers == batch.headers.with_stage("published", stamped)
    assert 0 <= stamped - headers.stages["encoded"] < 5000
    assert (publisher.counters.published, publisher.counters.bytes) == (1, len(batch.payload))


async def test_equal_content_is_published_again_and_a_resend_is_not(nc: Client, js: JetStreamContext) -> None:
    batch = encode_batches(bars(100), correlation_id="c")[0]
    publisher = Publisher(nc, js)
    acks = [await publisher.publish(batch, SUBJECT) for _ in range(2)]
    assert [ack.duplicate for ack in acks] == [False, False]  # a repair publishes equal content
    again = {"Nats-Msg-Id": "same"}
    acks = [await publisher.publish_message(SUBJECT, b"x", again) for _ in range(2)]
    assert [ack.duplicate for ack in acks] == [False, True]
    assert acks[0].seq == acks[1].seq
    assert (await js.stream_info(HISTORY)).state.messages == 3
    assert publisher.counters.duplicates == 1


async def test_a_lost_acknowledgement_sends_the_same_publication(own_server: NatsProcess) -> None:
    nc = await connect(own_server.settings, "test")
    try:
        js = nc.jetstream()
        await ensure_streams(js, scale=SCALE)
        publisher = Publisher(nc, js, ack_timeout_s=0.3)
        # Frozen, the server reads nothing: each send waits in its socket and is read later, all of them.
        own_server.pause()
        publishing = asyncio.create_task(publisher.publish(encode_batches(bars(10), correlation_id="c")[0], SUBJECT))
        await asyncio.sleep(1.2)
        own_server.resume()
        ack = await publishing
        await asyncio.sleep(0.2)
        assert publisher.counters.resent >= 1
        assert ack.duplicate
        assert (await js.stream_info(HISTORY)).state.messages == 1
    finally:
        own_server.resume()
        await nc.close()


async def test_no_more_than_the_window_is_in_flight(nc: Client, js: JetStreamContext) -> None:
    publisher = Publisher(nc, js, in_flight=8)
    batch = encode_batches(bars(50), correlation_id="c")[0]
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, publisher.counters.in_flight)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(publisher.publish(batch, SUBJECT) for _ in range(100)))
    watching.cancel()
    assert most == 8
    assert publisher.counters.in_flight == 0
    assert (await js.stream_info(HISTORY)).state.messages == 100


async def test_a_full_stream_holds_the_publisher_until_there_is_room(nc: Client, js: JetStreamContext) -> None:
    batch = noise()[0]
    publisher = Publisher(nc, js, wait_full_s=20)
    fitting = 8 * MB // len(batch.payload)
    publishing = [asyncio.create_task(publisher.publish(batch, SUBJECT)) for _ in range(fitting + 10)]
    await asyncio.sleep(1)
    waiting = [task for task in publishing if not task.done()]
    assert 10 <= len(waiting) < 20  # the headers take room too
    await ensure_consumer(js, HISTORY)
    subscription = await js.pull_subscribe_bind(BRIDGE, HISTORY)
    acknowledged = 0
    while acknowledged < len(publishing):
        for message in await subscription.fetch(len(publishing) - acknowledged, timeout=5):
            await message.ack()
            acknowledged += 1
    await asyncio.gather(*publishing)
    assert publisher.counters.published == len(publishing)
    assert publisher.counters.seconds_full > 1


async def test_a_stream_that_stays_full_is_an_error_in_bounded_time(nc: Client, js: JetStreamContext) -> None:
    batch = noise()[0]
    publisher = Publisher(nc, js, wait_full_s=0.5)
    started = time.monotonic()
    outcomes = await asyncio.gather(
        *(publisher.publish(batch, SUBJECT) for _ in range(8 * MB // len(batch.payload) + 2)), return_exceptions=True
    )
    assert 0.4 < time.monotonic() - started < 5
    full = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert full
    assert all(isinstance(error, StreamFull) and "maximum bytes exceeded" in str(error) for error in full)
    assert publisher.counters.failed == len(full)


async def test_what_is_too_large_is_caught_before_the_connection_is_harmed(nc: Client, js: JetStreamContext) -> None:
    await js.update_stream((await js.stream_info(HISTORY)).config.evolve(max_bytes=64 * MB))
    publisher = Publisher(nc, js)
    headers = {"Nats-Msg-Id": "large", "Extra": "x" * 100}
    most = message_limit(nc.max_payload) - headers_size(headers)
    assert (await publisher.publish_message(SUBJECT, b"x" * most, headers)).seq == 1
    # One byte more passes the client's own check, which forgets the headers, and would cost the connection.
    with pytest.raises(PayloadTooLarge, match="4128769 bytes with headers, the streams take 4128768"):
        await publisher.publish_message(SUBJECT, b"x" * (most + 1), headers)
    assert nc.is_connected
    assert (await publisher.publish_message(SUBJECT, b"x", {})).seq == 2


async def test_a_limit_of_the_stream_on_messages_is_terminal(nc: Client, js: JetStreamContext) -> None:
    await js.update_stream((await js.stream_info(HISTORY)).config.evolve(max_msg_size=1000))
    with pytest.raises(PayloadTooLarge):
        await Publisher(nc, js).publish_message(SUBJECT, b"x" * 2000, {})


async def test_without_a_stream_the_error_comes_in_bounded_time(nc: Client, js: JetStreamContext) -> None:
    publisher = Publisher(nc, js, retry_for_s=0.5)
    started = time.monotonic()
    with pytest.raises(BusUnreachable, match=r"nowhere: not acknowledged for 0\.5 s.*no stream takes it"):
        await publisher.publish_message("nowhere", b"x", {})
    assert time.monotonic() - started < 20


async def test_a_server_that_stays_away_is_an_error_and_a_closed_connection_at_once(own_server: NatsProcess) -> None:
    nc = await connect(own_server.settings, "test")
    js = nc.jetstream()
    await ensure_streams(js, scale=SCALE)
    own_server.kill()
    publisher = Publisher(nc, js, retry_for_s=1, ack_timeout_s=0.5)
    with pytest.raises(BusUnreachable, match="not acknowledged for 1 s"):
        await publisher.publish_message(SUBJECT, b"x", {})
    await nc.close()
    with pytest.raises(BusUnreachable, match="is closed"):
        await publisher.publish_message(SUBJECT, b"x", {})


async def test_killing_the_server_while_publishing_loses_nothing_acknowledged(own_server: NatsProcess) -> None:
    nc = await connect(own_server.settings, "test")
    try:
        js = nc.jetstream()
        await ensure_streams(js, scale=SCALE)
        publisher = Publisher(nc, js, ack_timeout_s=1)
        acknowledged: dict[bytes, int] = {}
        enough = asyncio.Event()

        async def publish(worker: int) -> None:
            number = 0
            while not enough.is_set():
                body = b"%d-%d" % (worker, number)
                acknowledged[body] = (await publisher.publish_message(SUBJECT, body, {})).seq
                number += 1

        publishing = asyncio.gather(*map(publish, range(64)))
        for _ in range(2):
            await asyncio.sleep(0.2)
            own_server.kill()
            await asyncio.sleep(0.1)
            own_server.start()
        await asyncio.sleep(0.2)
        enough.set()
        await publishing
        assert publisher.counters.resent > 0
        state = (await js.stream_info(HISTORY)).state
        # Each was stored exactly once: the duplicate window is rebuilt from what the stream still holds.
        assert state.messages == len(acknowledged) == len(set(acknowledged.values())) > 64
        for body in list(acknowledged)[:: len(acknowledged) // 50]:
            assert (await js.get_msg(HISTORY, seq=acknowledged[body])).data == body
    finally:
        await nc.close()


async def test_a_full_stream_has_a_bound_of_its_own(nc: Client, js: JetStreamContext) -> None:
    await js.update_stream((await js.stream_info(HISTORY)).config.evolve(max_msgs=1))
    publisher = Publisher(nc, js, wait_full_s=1, retry_for_s=0.2)
    await publisher.publish_message(SUBJECT, b"x", {})
    started = time.monotonic()
    with pytest.raises(StreamFull, match="maximum messages exceeded"):
        await publisher.publish_message(SUBJECT, b"x", {})
    assert time.monotonic() - started > 0.9

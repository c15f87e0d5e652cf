from __future__ import annotations

import asyncio
import time

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext

from market_pipeline.bus.connection import connect
from market_pipeline.bus.consumer import BatchConsumer, Delivery
from market_pipeline.bus.envelope import decode, encode_batches
from market_pipeline.bus.publisher import Publisher
from market_pipeline.bus.streams import BRIDGE, HISTORY, ensure_streams
from market_pipeline.errors import BusUnreachable, StreamMissing
from market_pipeline_tests.bus.bars import bars
from market_pipeline_tests.bus.conftest import SCALE
from market_pipeline_tests.servers import NatsProcess

SUBJECT = "history.EURUSD.1m"


async def fill(js: JetStreamContext, number: int) -> None:
    await asyncio.gather(*(js.publish(SUBJECT, b"%d" % each) for each in range(number)))


def seqs(deliveries: list[Delivery]) -> list[int]:
    return [delivery.stream_seq for delivery in deliveries]


async def test_a_batch_goes_round(nc: Client, js: JetStreamContext) -> None:
    batch = encode_batches(bars(1000), correlation_id="corr")[0]
    await Publisher(nc, js).publish(batch, SUBJECT)
    async with BatchConsumer(nc, js, HISTORY) as consumer:
        (delivery,) = await consumer.fetch(64, 2)
        assert (delivery.subject, delivery.stream, delivery.stream_seq) == (SUBJECT, HISTORY, 1)
        assert delivery.deliveries == 1
        assert 0 <= (delivery.received_at - delivery.published_at).total_seconds() < 30
        headers = delivery.batch_headers()
        assert (headers.batch_id, headers.correlation_id) == (batch.headers.batch_id, "corr")
        assert decode(delivery.payload, headers).drop("batch_id").equals(bars(1000))
        await consumer.ack([delivery], confirm=True)
        assert (await js.stream_info(HISTORY)).state.messages == 0


async def test_fetch_takes_what_is_there_without_waiting_for_more(nc: Client, js: JetStreamContext) -> None:
    await fill(js, 10)
    async with BatchConsumer(nc, js, HISTORY) as consumer:
        started = time.monotonic()
        assert seqs(await consumer.fetch(4, 30)) == [1, 2, 3, 4]
        assert seqs(await consumer.fetch(64, 30)) == [5, 6, 7, 8, 9, 10]
        assert time.monotonic() - started < 20
        started = time.monotonic()
        assert await consumer.fetch(64, 0.3) == []
        assert 0.25 < time.monotonic() - started < 20


async def test_fetch_returns_with_the_first_that_comes(nc: Client, js: JetStreamContext) -> None:
    async with BatchConsumer(nc, js, HISTORY) as consumer:
        fetching = asyncio.create_task(consumer.fetch(64, 30))
        await asyncio.sleep(0.2)
        started = time.monotonic()
        await js.publish(SUBJECT, b"x")
        assert seqs(await fetching) == [1]
        assert time.monotonic() - started < 20
        # No request is left behind on the server to take messages that nobody waits for.
        await fill(js, 3)
        await asyncio.sleep(0.2)
        assert (await consumer.pending()).num_ack_pending == 1


async def test_what_is_not_acknowledged_comes_again_and_counts(nc: Client, js: JetStreamContext) -> None:
    await fill(js, 2)
    async with BatchConsumer(nc, js, HISTORY, ack_wait_s=0.5) as consumer:
        first = await consumer.fetch(64, 1)
        await consumer.ack(first[:1])
        again = await consumer.fetch(64, 2)
        assert [(each.stream_seq, each.deliveries, each.payload) for each in again] == [(2, 2, first[1].payload)]
        # The acknowledgement of any delivery ends the message.
        await consumer.ack(first[1:], confirm=True)
        assert (await consumer.pending()).num_ack_pending == 0


async def test_keep_alive_holds_messages_beyond_ack_wait(nc: Client, js: JetStreamContext) -> None:
    await fill(js, 3)
    async with BatchConsumer(nc, js, HISTORY, ack_wait_s=0.6) as consumer:
        held = await consumer.fetch(64, 1)
        async with consumer.keep_alive(held, every_s=0.15):
            assert await consumer.fetch(64, 1.5) == []
        await consumer.ack(held, confirm=True)
        assert (await js.stream_info(HISTORY)).state.messages == 0


async def test_what_is_given_back_goes_to_another_worker(server: NatsProcess, nc: Client, js: JetStreamContext) -> None:
    await fill(js, 64)
    other = await connect(server.settings, "other")
    try:
        async with (
            BatchConsumer(nc, js, HISTORY) as mine,
            BatchConsumer(other, other.jetstream(), HISTORY) as theirs,
        ):
            held = await mine.fetch(64, 1)
            await fill(js, 1)
            assert await theirs.fetch(64, 0.2) == []  # max_ack_pending: who holds all starves the others
            await mine.give_back(held)
            await nc.flush()
            taken = await theirs.fetch(64, 1)
            assert seqs(taken) == list(range(1, 65))
            assert {each.deliveries for each in taken} == {2}
            started = time.monotonic()
            await theirs.give_back(taken[:1], delay_s=0.6)
            await theirs.ack(taken[1:])
            late = [*await theirs.fetch(1, 2), *await theirs.fetch(1, 2)]
            assert seqs(late) == [65, 1]
            assert time.monotonic() - started > 0.5
    finally:
        await other.close()


async def test_a_terminated_message_never_comes_again(nc: Client, js: JetStreamContext) -> None:
    await fill(js, 1)
    async with BatchConsumer(nc, js, HISTORY, ack_wait_s=0.3) as consumer:
        (delivery,) = await consumer.fetch(1, 1)
        await consumer.term(delivery)
        assert await consumer.fetch(1, 0.8) == []
        assert (await js.stream_info(HISTORY)).state.messages == 0


async def test_lag_counts_and_ages(nc: Client, js: JetStreamContext) -> None:
    async with BatchConsumer(nc, js, HISTORY) as consumer:
        lag = await consumer.pending()
        assert (lag.num_pending, lag.num_ack_pending, lag.oldest_age_s) == (0, 0, 0)
        await fill(js, 5)
        await asyncio.sleep(0.3)
        held = await consumer.fetch(2, 1)
        lag = await consumer.pending()
        assert (lag.num_pending, lag.num_ack_pending) == (3, 2)
        assert 0.3 <= lag.oldest_age_s < 30
        await consumer.ack(held, confirm=True)
        await consumer.ack(await consumer.fetch(3, 1), confirm=True)
        assert (await consumer.pending()).oldest_age_s == 0


async def test_a_consumer_that_was_deleted_is_created_anew(nc: Client, js: JetStreamContext) -> None:
    async with BatchConsumer(nc, js, HISTORY) as consumer:
        fetching = asyncio.create_task(consumer.fetch(64, 10))
        await asyncio.sleep(0.2)
        await js.delete_consumer(HISTORY, BRIDGE)
        assert await fetching == []
        await fill(js, 2)
        came = await consumer.fetch(64, 20)  # of two, the second may come a moment later
        assert len(came if len(came) == 2 else [*came, *await consumer.fetch(64, 20)]) == 2
        assert consumer.resubscribed >= 1


async def test_a_deleted_stream_is_said(nc: Client, js: JetStreamContext) -> None:
    async with BatchConsumer(nc, js, HISTORY) as consumer:
        await js.delete_stream(HISTORY)
        with pytest.raises(StreamMissing, match="HISTORY does not exist"):
            await consumer.fetch(64, 1)


async def test_the_watchdog_mends_a_subscription_that_went_deaf(nc: Client, js: JetStreamContext) -> None:
    async with BatchConsumer(nc, js, HISTORY, ack_wait_s=0.5, stalled_s=1) as consumer:
        await fill(js, 3)
        assert consumer._puller is not None
        # What a restarted server can leave behind: requests are taken, and the inbox hears nothing.
        nc._subs.pop(consumer._puller._subscription._id)
        taken: set[int] = set()
        async with asyncio.timeout(10):
            while len(taken) < 3:
                taken.update(seqs(await consumer.fetch(64, 0.1)))
        assert consumer.resubscribed == 1


async def test_messages_flow_on_after_the_server_was_killed(own_server: NatsProcess) -> None:
    nc = await connect(own_server.settings, "test")
    try:
        js = nc.jetstream()
        await ensure_streams(js, scale=SCALE)
        publisher = Publisher(nc, js, ack_timeout_s=1)
        published: set[bytes] = set()
        seen: set[bytes] = set()
        enough = asyncio.Event()

        async def publish() -> None:
            while not enough.is_set():
                body = b"%d" % len(published)
                await publisher.publish_message(SUBJECT, body, {})
                published.add(body)

        async with BatchConsumer(nc, js, HISTORY, ack_wait_s=2, stalled_s=2) as consumer, asyncio.timeout(30):

            async def consume() -> None:
                while not (enough.is_set() and published <= seen):
                    held = await consumer.fetch(64, 0.5)
                    seen.update(each.payload for each in held)
                    await consumer.ack(held)

            consuming = asyncio.create_task(consume())
            publishing = asyncio.create_task(publish())
            for _ in range(2):
                await asyncio.sleep(0.2)
                before = len(seen)
                own_server.kill()
                await asyncio.sleep(0.2)
                own_server.start()
                while True:
                    if len(seen) > before + 5:
                        break
                    await asyncio.sleep(0.02)
            enough.set()
            await publishing
            await consuming
    finally:
        await nc.close()


async def test_a_closed_connection_is_said(server: NatsProcess, js: JetStreamContext) -> None:
    other = await connect(server.settings, "other")
    consumer = BatchConsumer(other, other.jetstream(), HISTORY)
    await consumer.start()
    await fill(js, 1)
    held = await consumer.fetch(1, 1)
    await other.close()
    with pytest.raises(BusUnreachable, match="is closed"):
        await consumer.fetch(1, 1)
    with pytest.raises(BusUnreachable):
        await consumer.ack(held)


async def test_after_a_reset_what_is_unacknowledged_comes_again_at_once_and_in_order(
    nc: Client, js: JetStreamContext
) -> None:
    await fill(js, 10)
    async with BatchConsumer(nc, js, HISTORY) as consumer:
        taken = await consumer.fetch(6, 5)
        await consumer.ack(taken[:2], confirm=True)
        assert await consumer.ack_floor() == 2
        await consumer.reset()
        assert seqs(await consumer.fetch(64, 5)) == [3, 4, 5, 6, 7, 8, 9, 10]
        await consumer.ack(taken[2:4], confirm=True)  # of the delivery before: it still counts
        assert await consumer.ack_floor() == 4

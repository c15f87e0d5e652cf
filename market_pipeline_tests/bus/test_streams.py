from __future__ import annotations

import asyncio

import pytest
from nats.js import JetStreamContext, api
from nats.js.errors import APIError

from market_pipeline.bus import streams
from market_pipeline.bus.connection import connect
from market_pipeline.bus.streams import (
    DEAD_LETTERS,
    EXTERNAL,
    HISTORY,
    LIVE,
    MB,
    STREAMS,
    TICKS,
    ensure_consumer,
    ensure_streams,
    storage_needed,
)
from market_pipeline.bus.subjects import dlq_subject, external_subject, history_subject, market_subject
from market_pipeline.errors import SettingsError, StreamMissing
from market_pipeline.market.timeframes import TIMEFRAMES
from market_pipeline_tests.bus.conftest import SCALE
from market_pipeline_tests.servers import NatsProcess


async def test_the_streams_keep_what_the_design_says(js: JetStreamContext) -> None:
    await ensure_streams(js)  # from the tests' small limits to the real ones
    work, limits = api.RetentionPolicy.WORK_QUEUE, api.RetentionPolicy.LIMITS
    wanted = {
        HISTORY: (work, 512 * MB, 0),
        LIVE: (work, 2048 * MB, 0),
        EXTERNAL: (work, 256 * MB, 0),
        TICKS: (limits, 4096 * MB, 48 * 3600),
        DEAD_LETTERS: (limits, 512 * MB, 30 * 86400),
    }
    assert wanted.keys() == STREAMS.keys()
    assert STREAMS[TICKS].discard == api.DiscardPolicy.OLD, "live goes on whoever is behind"
    for name, (retention, max_bytes, max_age) in wanted.items():
        config = (await js.stream_info(name)).config
        assert (config.retention, config.max_bytes, config.max_age) == (retention, max_bytes, max_age)
        discard = api.DiscardPolicy.OLD if name == TICKS else api.DiscardPolicy.NEW
        assert (config.storage, config.discard) == (api.StorageType.FILE, discard)
        assert (config.duplicate_window, config.num_replicas) == (120, 1)
        # a letter is larger than the message that it holds
        assert config.max_msg_size == (-1 if name == DEAD_LETTERS else 4 * MB - 64 * 1024)
    assert storage_needed() == sum(max_bytes for _, max_bytes, _ in wanted.values())


async def test_every_subject_is_in_exactly_one_stream(js: JetStreamContext) -> None:
    subjects = {market_subject("BRK.B", code): LIVE for code in TIMEFRAMES}
    subjects |= {history_subject("C:X", code): HISTORY for code in TIMEFRAMES}
    subjects |= {
        market_subject("EURUSD", "tick"): TICKS,
        external_subject("fear.greed"): EXTERNAL,
        dlq_subject(HISTORY, "digest_mismatch"): DEAD_LETTERS,
    }
    for subject, stream in subjects.items():
        assert (await js.publish(subject, b"x")).stream == stream


async def test_ensuring_again_and_at_once_changes_nothing(js: JetStreamContext) -> None:
    await js.publish("history.EURUSD.1m", b"x")
    await asyncio.gather(*(ensure_streams(js, scale=SCALE) for _ in range(4)))
    assert (await js.stream_info(HISTORY)).state.messages == 1
    await js.delete_stream(LIVE)
    await asyncio.gather(*(ensure_streams(js, scale=SCALE) for _ in range(4)))
    assert (await js.stream_info(LIVE)).state.messages == 0


async def test_drift_is_mended_and_what_is_not_ours_left_alone(js: JetStreamContext) -> None:
    config = (await js.stream_info(TICKS)).config
    await js.update_stream(config.evolve(max_age=600, discard=api.DiscardPolicy.NEW, max_msgs=77))
    await ensure_streams(js, scale=SCALE)
    config = (await js.stream_info(TICKS)).config
    assert (config.max_age, config.discard, config.max_msgs) == (48 * 3600, api.DiscardPolicy.OLD, 77)


async def test_full_of_ticks_the_oldest_give_way_and_the_newest_are_kept(js: JetStreamContext) -> None:
    config = (await js.stream_info(TICKS)).config
    await js.update_stream(config.evolve(max_bytes=64 * 1024))
    acks = [await js.publish(market_subject("EURUSD", "tick"), bytes(8 * 1024)) for _ in range(20)]
    state = (await js.stream_info(TICKS)).state
    assert 1 < state.first_seq < state.last_seq == acks[-1].seq
    assert state.bytes <= 64 * 1024


async def test_a_stream_that_cannot_be_changed_is_named(js: JetStreamContext) -> None:
    await js.delete_stream(EXTERNAL)
    await js.add_stream(name=EXTERNAL, subjects=["external.>"], storage=api.StorageType.MEMORY)
    with pytest.raises(SettingsError, match="EXTERNAL exists in a way that cannot be changed"):
        await ensure_streams(js, scale=SCALE)


async def test_a_foreign_stream_on_our_subjects_is_named(js: JetStreamContext) -> None:
    await js.delete_stream(HISTORY)
    await js.add_stream(name="OLD", subjects=["history.EURUSD.>"])
    with pytest.raises(SettingsError, match=r"another stream takes subjects of HISTORY \(history"):
        await ensure_streams(js, scale=SCALE)


async def test_replicas_without_a_cluster_name_the_setting(js: JetStreamContext) -> None:
    with pytest.raises(SettingsError, match=r"nats\.replicas"):
        await ensure_streams(js, replicas=3, scale=SCALE)


async def test_a_small_disk_is_said_and_a_small_scale_fits() -> None:
    with NatsProcess(max_file_store="100MB") as server:
        nc = await connect(server.settings, "test")
        try:
            with pytest.raises(SettingsError, match=r"no room on disk for the stream HISTORY.*max_file_store.*scale"):
                await ensure_streams(nc.jetstream())
            assert storage_needed(1 / 100) < 100 * MB
            await ensure_streams(nc.jetstream(), scale=1 / 100)
        finally:
            await nc.close()


async def test_a_consumer_is_created_once_and_mended(js: JetStreamContext) -> None:
    await asyncio.gather(*(ensure_consumer(js, HISTORY) for _ in range(4)))
    config = (await js.consumer_info(HISTORY, streams.BRIDGE)).config
    assert (config.ack_policy, config.ack_wait) == (api.AckPolicy.EXPLICIT, 15)
    assert (config.max_deliver, config.max_ack_pending) == (-1, 64)
    assert (await ensure_consumer(js, LIVE)).config.max_ack_pending == 256
    await js.add_consumer(HISTORY, config.evolve(max_ack_pending=3, ack_wait=60))
    await ensure_consumer(js, HISTORY)
    config = (await js.consumer_info(HISTORY, streams.BRIDGE)).config
    assert (config.ack_wait, config.max_ack_pending) == (15, 64)


async def test_a_work_queue_has_one_consumer_and_ticks_have_many(js: JetStreamContext) -> None:
    await ensure_consumer(js, HISTORY)
    with pytest.raises(SettingsError, match="HISTORY is a work queue and has a consumer already"):
        await ensure_consumer(js, HISTORY, "second")
    await ensure_consumer(js, TICKS, "tick-store")
    await ensure_consumer(js, TICKS, "aggregator")
    await js.delete_stream(LIVE)
    with pytest.raises(StreamMissing, match="LIVE does not exist"):
        await ensure_consumer(js, LIVE)


async def test_an_acknowledged_batch_leaves_a_work_queue(js: JetStreamContext) -> None:
    await ensure_consumer(js, HISTORY)
    await js.publish("history.EURUSD.1m", b"x")
    subscription = await js.pull_subscribe_bind(streams.BRIDGE, HISTORY)
    await (await subscription.fetch(1))[0].ack_sync()
    assert (await js.stream_info(HISTORY)).state.messages == 0
    with pytest.raises(APIError):
        await js.get_msg(HISTORY, seq=1)


async def test_many_processes_make_the_streams_at_once_where_there_is_room_for_one_set() -> None:
    with NatsProcess(max_file_store="8GB") as server:
        clients = [await connect(server.settings, f"one of many {number}") for number in range(8)]
        try:
            await asyncio.gather(*(ensure_streams(client.jetstream()) for client in clients))
            assert len(await clients[0].jetstream().streams_info()) == len(STREAMS)
        finally:
            await asyncio.gather(*(client.close() for client in clients))

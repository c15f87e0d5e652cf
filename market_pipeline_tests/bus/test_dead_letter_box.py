"""What a person does with dead letters: read, replay, drop."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.js import JetStreamContext

from market_pipeline.bus import dead_letter_box
from market_pipeline.bus.dead_letter import DeadLetter, Reason
from market_pipeline.bus.dead_letter_box import DeadLetterBox, NotReplayable, merge_ranges, within
from market_pipeline.bus.dead_letters import Selection, count_dead_letters, publish_letter, walk_dead_letters
from market_pipeline.bus.envelope import decode, encode_batches
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import DEAD_LETTERS, HISTORY, LIVE, ensure_streams
from market_pipeline.errors import BusUnreachable, InputError
from market_pipeline_tests.bus.bars import bars
from market_pipeline_tests.bus.conftest import SCALE

BATCH = encode_batches(bars(3), correlation_id="c")[0]
SUBJECT = "market.EURUSD.1m"
LETTER = DeadLetter(
    Reason.INSERT_FAILED, LIVE, SUBJECT, 0, "c", BATCH.payload, "refused", headers=BATCH.headers.to_nats()
)
ROW = bars(1).with_columns(batch_id=pl.lit(9, pl.UInt64))


@pytest.fixture
async def box(nc: Client, js: JetStreamContext) -> DeadLetterBox:
    return DeadLetterBox(BusSession(nc, js))


async def test_thousands_are_walked_in_a_moment(js: JetStreamContext, box: DeadLetterBox) -> None:
    for number in range(3_000):
        headers = replace(LETTER, stream_seq=number).to_nats()
        await js.publish_async(f"dlq.{LIVE}.insert_failed", b"x" * 100, headers=headers)
    await js.publish_async_completed()
    started = time.monotonic()
    places = [letter.seq async for letter in box.walk(Selection(), headers_only=True)]
    seconds = time.monotonic() - started
    assert places == list(range(1, 3_001))
    assert seconds < 15, "one request a letter would take longer"
    assert (await js.stream_info(DEAD_LETTERS)).state.consumer_count == 0, "no reader is left behind"


async def test_a_selection_takes_what_it_says(js: JetStreamContext) -> None:
    for reason, stream in (
        (Reason.INSERT_FAILED, LIVE),
        (Reason.INSERT_FAILED, HISTORY),
        (Reason.SCHEMA_VERSION, LIVE),
    ):
        await publish_letter(js, replace(LETTER, reason=reason, stream=stream))

    async def places(**chosen: object) -> list[int]:
        return [letter.seq async for letter in walk_dead_letters(js, Selection(**chosen))]  # type: ignore[arg-type]

    assert await places(reason="insert_failed") == [1, 2]
    assert await places(stream=LIVE) == [1, 3]
    assert await places(reason="insert_failed", stream=HISTORY) == [2]
    [first] = [letter async for letter in walk_dead_letters(js, Selection(reason="insert_failed", stream=LIVE))]
    assert await places(since=first.at) == [1, 2, 3]
    assert await places(until=first.at) == []
    with pytest.raises(InputError, match="one of unreadable_envelope"):
        Selection(reason="because")


async def test_a_crash_after_the_message_was_sent_leaves_both(
    js: JetStreamContext, box: DeadLetterBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish_letter(js, LETTER)

    async def crash(*_: object) -> bool:
        raise BusUnreachable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(dead_letter_box, "drop_dead_letter", crash)
        with pytest.raises(BusUnreachable):
            await box.replay_all(Selection())
    assert (await js.stream_info(LIVE)).state.messages == 1
    assert await count_dead_letters(js) == {(LIVE, "insert_failed"): 1}
    assert (await box.replay_all(Selection())).replayed == 1, "once more: not taken for a duplicate"
    assert (await js.stream_info(LIVE)).state.messages == 2
    assert await count_dead_letters(js) == {}


async def test_a_row_that_is_a_bar_now_goes_as_a_batch_of_its_own(js: JetStreamContext, box: DeadLetterBox) -> None:
    row = replace(LETTER, reason=Reason.MALFORMED_ROW)
    wrong = ROW.with_columns(volume=pl.lit(-1.0))
    for payload in (ROW.write_ndjson().encode(), wrong.write_ndjson().encode(), b"no JSON", b'{"ts": "soon"}'):
        await publish_letter(js, replace(row, payload=payload))
    done = await box.replay_all(Selection())
    assert (done.replayed, [seq for seq, _ in done.refusals]) == (1, [2, 3, 4])
    assert "still malformed (volume: negative)" in done.refusals[0][1]
    found = await js.get_msg(LIVE, seq=1)
    async with BusSession(js._nc, js).consumer(LIVE) as consumer:
        [delivery] = await consumer.fetch(1, 5)
    frame = decode(delivery.payload, delivery.batch_headers())
    assert found.subject == SUBJECT
    assert frame.drop("batch_id").equals(ROW.drop("batch_id"))


async def test_what_cannot_be_replayed_says_what_to_do(js: JetStreamContext, box: DeadLetterBox) -> None:
    await publish_letter(js, replace(LETTER, reason=Reason.VENDOR_MALFORMED_ROW))
    await js.publish("dlq.x", b"by hand")
    with pytest.raises(NotReplayable, match="ask the vendor again"):
        await box.replay(await box.get(1))
    with pytest.raises(NotReplayable, match="where it came from"):
        await box.replay(await box.get(2))
    assert [await box.drop(seq) for seq in (1, 2, 2)] == [True, True, False]
    with pytest.raises(InputError, match="no dead letter 1"):
        await box.get(1)


async def test_read_letters_stay_and_are_not_unread_until_the_stream_begins_anew(
    js: JetStreamContext, box: DeadLetterBox, nc: Client
) -> None:
    for _ in range(3):
        await publish_letter(js, LETTER)
    await box.acknowledge([1, 3])
    unread = await box.unread()
    assert (unread.counts, unread.newest[LIVE, "insert_failed"].seq) == ({(LIVE, "insert_failed"): 1}, 2)
    await DeadLetterBox(BusSession(nc, js)).acknowledge([2])
    assert (await box.unread()).total == 0
    assert (await box.replay_all(Selection())).replayed == 3, "a letter that was read can still be replayed"
    await js.delete_stream(DEAD_LETTERS)
    assert (await box.unread()).total == 0
    await ensure_streams(js, scale=SCALE)
    await publish_letter(js, LETTER)
    assert (await box.unread()).total == 1, "the first letter of another stream"


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 8)), max_size=30), st.integers(1, 60))
def test_ranges_hold_the_same_places_in_fewer_pieces(given_: list[tuple[int, int]], first: int) -> None:
    ranges = [(low, low + length) for low, length in given_]
    merged = merge_ranges(ranges, first)
    assert all(within(merged, n) == (n >= first and within(ranges, n)) for n in range(1, 80))
    assert all(a[1] + 1 < b[0] for a, b in pairwise(merged))

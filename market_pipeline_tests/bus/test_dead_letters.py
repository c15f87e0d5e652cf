from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import APIError

from market_pipeline.bus.consumer import BatchConsumer
from market_pipeline.bus.dead_letter import SHORT_CHARS
from market_pipeline.bus.dead_letter_box import DeadLetterBox, NotReplayable
from market_pipeline.bus.dead_letters import (
    SERVER_HEADERS,
    DeadLetter,
    Reason,
    count_dead_letters,
    list_dead_letters,
    publish_dead_letter,
    publish_letter,
)
from market_pipeline.bus.envelope import encode_batches
from market_pipeline.bus.limits import message_limit
from market_pipeline.bus.publisher import Publisher, headers_size
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import DEAD_LETTERS, HISTORY
from market_pipeline.errors import BusUnreachable, PayloadTooLarge, StreamFull, UnreadableBatch
from market_pipeline_tests.bus.bars import bars

SUBJECT = "history.EURUSD.1m"
VENDOR_ROWS = DeadLetter(
    reason=Reason.VENDOR_MALFORMED_ROW,
    stream=HISTORY,
    subject=SUBJECT,
    stream_seq=0,
    correlation_id="c",
    payload=b'{"t":null}',
    last_error="ts: is null",
)


async def test_a_dead_letter_is_on_disk_before_the_original_ends(nc: Client, js: JetStreamContext) -> None:
    batch = encode_batches(bars(10), correlation_id="corr ☂")[0]
    await Publisher(nc, js).publish(batch, SUBJECT)
    async with BatchConsumer(nc, js, HISTORY) as consumer:
        (delivery,) = await consumer.fetch(1, 1)
        error = UnreadableBatch("what?\r\nstrange\tbytes é")
        ack = await publish_dead_letter(js, delivery, "digest_mismatch", error, first_error="the first")
        assert (ack.stream, ack.seq) == (DEAD_LETTERS, 1)
        assert (await js.stream_info(HISTORY)).state.messages == 1
        # The end of the delivery was lost and it came again: still one dead letter.
        assert (await publish_dead_letter(js, delivery, Reason.DIGEST_MISMATCH, error)).duplicate
        await consumer.term(delivery)
    assert (await js.stream_info(HISTORY)).state.messages == 0
    (letter,) = await list_dead_letters(js)
    assert (letter.reason, letter.stream, letter.subject) == (Reason.DIGEST_MISMATCH, HISTORY, SUBJECT)
    assert (letter.stream_seq, letter.attempts, letter.correlation_id) == (1, 1, "corr ☂")
    assert (letter.first_error, letter.last_error) == ("the first", str(error))
    assert letter.payload == batch.payload
    assert letter.headers == delivery.headers  # what a replay sends again
    assert letter.at is not None
    assert (await js.get_msg(DEAD_LETTERS, seq=1)).subject == "dlq.HISTORY.digest_mismatch"


async def test_a_message_of_nobody_knows_whom_can_be_a_dead_letter(nc: Client, js: JetStreamContext) -> None:
    await js.publish(SUBJECT, b"\x00junk", headers={"Correlation-Id": "abc"})
    async with BatchConsumer(nc, js, HISTORY) as consumer:
        (delivery,) = await consumer.fetch(1, 1)
        with pytest.raises(UnreadableBatch) as error:
            delivery.batch_headers()
        await publish_dead_letter(js, delivery, error.value.reason, error.value)
    (letter,) = await list_dead_letters(js)
    assert (letter.reason, letter.payload) == (Reason.UNREADABLE_ENVELOPE, b"\x00junk")
    assert letter.correlation_id == "abc"


async def test_rows_of_one_message_are_dead_letters_of_their_own(nc: Client, js: JetStreamContext) -> None:
    await js.publish(SUBJECT, b"whole", headers={"Correlation-Id": "abc"})
    async with BatchConsumer(nc, js, HISTORY) as consumer:
        (delivery,) = await consumer.fetch(1, 1)
        for rows in (b"row1", b"row2"):
            assert not (await publish_dead_letter(js, delivery, Reason.MALFORMED_ROW, "null", rows=rows)).duplicate
    assert [letter.payload for letter in await list_dead_letters(js)] == [b"row1", b"row2"]


async def test_listing_pages_and_counts(js: JetStreamContext) -> None:
    assert await list_dead_letters(js) == []
    assert await count_dead_letters(js) == {}
    for number in range(5):
        await publish_letter(js, replace(VENDOR_ROWS, payload=b"%d" % number))
    await publish_letter(js, replace(VENDOR_ROWS, reason=Reason.UNKNOWN_SYMBOL))
    await js.delete_msg(DEAD_LETTERS, 2)
    first = await list_dead_letters(js, 3)
    assert [letter.payload for letter in first] == [b"0", b"2", b"3"]
    rest = await list_dead_letters(js, 10, after_seq=first[-1].seq)
    assert [letter.seq for letter in rest] == [5, 6]
    assert await count_dead_letters(js) == {(HISTORY, "vendor_malformed_row"): 4, (HISTORY, "unknown_symbol"): 1}


async def test_equal_vendor_rows_are_all_kept(js: JetStreamContext) -> None:
    for _ in range(2):
        assert not (await publish_letter(js, VENDOR_ROWS)).duplicate
    assert len(await list_dead_letters(js)) == 2


async def test_one_that_was_published_by_hand_is_listed(js: JetStreamContext) -> None:
    await js.publish("dlq.x", b"hello")
    (letter,) = await list_dead_letters(js)
    assert (letter.payload, letter.seq) == (b"hello", 1)
    assert await count_dead_letters(js) == {("x", ""): 1}


async def test_a_full_dead_letter_stream_keeps_the_original(nc: Client, js: JetStreamContext) -> None:
    await js.update_stream((await js.stream_info(DEAD_LETTERS)).config.evolve(max_msgs=1))
    await publish_letter(js, VENDOR_ROWS)
    with pytest.raises(StreamFull, match="replay or drop"):
        await publish_letter(js, VENDOR_ROWS)


async def test_what_a_stream_takes_can_always_be_buried(nc: Client, js: JetStreamContext) -> None:
    """A foreign producer's largest message, with errors and a correlation id that take as much room as they can."""
    bus = BusSession(nc, js)
    headers = {"Correlation-Id": "%E2%98%82" * 1_000}
    body = b"x" * (message_limit(nc.max_payload) - headers_size(headers))
    with pytest.raises(APIError, match="message size exceeds"):
        await js.publish(SUBJECT, body + b"x", headers=headers)
    await js.publish(SUBJECT, body, headers=headers)
    async with BatchConsumer(nc, js, HISTORY) as consumer:
        (delivery,) = await consumer.fetch(1, 5)
        await bus.bury(delivery, Reason.UNREADABLE_ENVELOPE, "😱" * 500)
        await consumer.term(delivery)
    (letter,) = await list_dead_letters(js)
    assert (letter.payload, letter.headers) == (body, headers)
    assert letter.last_error == "😱" * 500
    with pytest.raises(NotReplayable, match="too large"):  # its own id takes room too
        await DeadLetterBox(bus).replay(letter)
    assert nc.is_connected


async def test_one_that_the_server_would_not_take_is_refused_before_it_is_sent(
    nc: Client, js: JetStreamContext
) -> None:
    """A message of before its stream had a limit: with short errors it may still fit, and nothing breaks if not."""
    letter = replace(VENDOR_ROWS, last_error="x" * 500, first_error="y" * 500)
    room = nc.max_payload - headers_size(letter.to_nats(SHORT_CHARS)) - SERVER_HEADERS
    await publish_letter(js, replace(letter, payload=b"x" * room), nc.max_payload)
    assert (await list_dead_letters(js))[0].last_error == "x" * SHORT_CHARS
    with pytest.raises(PayloadTooLarge, match="raise its max_payload"):
        await publish_letter(js, replace(letter, payload=b"x" * (room + 1)), nc.max_payload)
    assert nc.is_connected


async def test_headers_that_leave_no_room_for_ours_go_and_the_payload_stays(nc: Client, js: JetStreamContext) -> None:
    headers = {"Symbol": "EURUSD", "Correlation-Id": "c" * 65_000}
    await js.publish(SUBJECT, b"body", headers=headers)
    async with BatchConsumer(nc, js, HISTORY) as consumer:
        (delivery,) = await consumer.fetch(1, 5)
        await publish_dead_letter(js, delivery, Reason.UNREADABLE_ENVELOPE, "e" * 500)
    (letter,) = await list_dead_letters(js)
    assert (letter.payload, letter.headers) == (b"body", {"Symbol": "EURUSD"})
    assert letter.last_error == "e" * SHORT_CHARS


async def test_without_the_stream_there_is_no_dead_letter(js: JetStreamContext) -> None:
    await js.delete_stream(DEAD_LETTERS)
    with pytest.raises(BusUnreachable):
        await publish_letter(js, VENDOR_ROWS)
    with pytest.raises(BusUnreachable):
        await count_dead_letters(js)


def test_reasons_are_fixed() -> None:
    with pytest.raises(ValueError):
        replace(VENDOR_ROWS, reason=Reason("because"))


@given(st.text(st.characters()), st.text(st.characters()))
def test_errors_of_any_text_fit_into_headers(last_error: str, first_error: str) -> None:
    headers = replace(VENDOR_ROWS, last_error=last_error, first_error=first_error).to_nats()
    assert all(value.isascii() and value.isprintable() for value in headers.values())

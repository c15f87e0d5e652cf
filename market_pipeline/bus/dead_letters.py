"""Dead letters: what can never be stored, kept with its reason for a person to look at, replay or drop.

Poison comes here; an outage never does: it stops the consumers, and the messages wait in their streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NotFoundError
from nats.js.errors import Error as JetStreamError

from market_pipeline.bus.consumer import Delivery
from market_pipeline.bus.dead_letter import CORRELATION_HEADER, MAX_ERROR_CHARS, DeadLetter, Reason
from market_pipeline.bus.limits import MAX_HEADERS, MAX_PAYLOAD
from market_pipeline.bus.publisher import STORE_FAILED, PubAck, headers_size
from market_pipeline.bus.streams import DEAD_LETTERS, bus_error
from market_pipeline.bus.subjects import dlq_subject, token
from market_pipeline.errors import InputError, PayloadTooLarge, StreamFull

__all__ = [
    "CORRELATION_HEADER",
    "MAX_ERROR_CHARS",
    "DeadLetter",
    "Reason",
    "Selection",
    "count_dead_letters",
    "drop_dead_letter",
    "list_dead_letters",
    "publish_dead_letter",
    "publish_letter",
    "read_dead_letter",
    "walk_dead_letters",
]

log = structlog.get_logger(__name__)

PUBLISH_TIMEOUT_S = 5.0
SERVER_HEADERS = 256
"""Bytes of what is told to the server itself: the letter's id, the stream."""
FETCH, FETCH_BYTES, FETCH_WAIT_S = 256, 32 * 1024 * 1024, 5.0
READER_LIFE_S = 60.0
"""A reader that died is forgotten by the server after so long."""
NO_MESSAGE = frozenset({10037, 10043, 10057})
_ERRORS = (APIError, JetStreamError, nats.errors.Error, TimeoutError)


@dataclass(frozen=True, slots=True)
class Selection:
    """Choose dead letters: by reason, by the stream they came from, and by when they came, in [since, until), UTC.

    Raises:
        InputError: there is no such reason.
    """

    reason: str = ""
    stream: str = ""
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        if self.reason and self.reason not in set(Reason):
            raise InputError(f"there is no reason {self.reason!r}: one of {', '.join(Reason)}")

    @property
    def subject(self) -> str:
        """The subject that the server filters by."""
        if not (self.reason or self.stream):
            return "dlq.>"
        return f"dlq.{token(self.stream) if self.stream else '*'}.{token(self.reason) if self.reason else '*'}"

    def takes(self, letter: DeadLetter) -> bool:
        """Whether a letter came within the times."""
        if letter.at is None:
            return True
        return (self.since is None or letter.at >= self.since) and (self.until is None or letter.at < self.until)


async def publish_letter(js: JetStreamContext, letter: DeadLetter, max_payload: int = MAX_PAYLOAD) -> PubAck:
    """Publish a dead letter and return once DEAD_LETTERS has it on disk; `max_payload` is the server's.

    Raises:
        PayloadTooLarge: not even with few headers does the server take it. The streams take no such message; one that
            came before they had a limit stays where it is.
        StreamFull: DEAD_LETTERS is full: the message must stay where it is, and a person look.
        BusUnreachable: no acknowledgement; the message stays where it is and comes again.
    """
    room = min(MAX_HEADERS, max_payload - len(letter.payload)) - SERVER_HEADERS
    headers = letter.to_nats_within(room)
    if headers_size(headers) > room:
        raise PayloadTooLarge(
            f"the dead letter of {letter.stream} {letter.stream_seq} is larger than the {max_payload} bytes that the "
            "server takes: raise its max_payload"
        )
    if letter.stream_seq and letter.at is None:
        # A message given up twice, because the end of its delivery was lost, is one dead letter all the same.
        content = blake2b(letter.payload, digest_size=8).hexdigest()  # several rows of one message may each be one
        headers["Nats-Msg-Id"] = f"{letter.stream}-{letter.stream_seq}-{letter.reason.value}-{content}"
    subject = dlq_subject(letter.stream, letter.reason.value)
    try:
        ack = await js.publish(
            subject, letter.payload, timeout=PUBLISH_TIMEOUT_S, stream=DEAD_LETTERS, headers=dict(headers)
        )
    except APIError as error:
        if error.err_code == STORE_FAILED:
            raise StreamFull(f"{subject}: {error.description}; replay or drop dead letters to make room") from error
        raise bus_error(error, subject) from error
    except (JetStreamError, nats.errors.Error, TimeoutError) as error:
        raise bus_error(error, subject) from error
    log.warning(
        "dead letter",
        reason=letter.reason.value,
        stream=letter.stream,
        stream_seq=letter.stream_seq,
        correlation_id=letter.correlation_id,
        attempts=letter.attempts,
        error=letter.last_error[:MAX_ERROR_CHARS],
    )
    return PubAck(ack.stream, ack.seq, bool(ack.duplicate))


async def publish_dead_letter(
    js: JetStreamContext,
    delivery: Delivery,
    reason: Reason | str,
    error: BaseException | str,
    *,
    first_error: str = "",
    attempts: int | None = None,
    rows: bytes | None = None,
    max_payload: int = MAX_PAYLOAD,
) -> PubAck:
    """Publish the dead letter of a delivery; only when this has returned may the delivery be `term`ed.

    Raises: as `publish_letter`.
    """
    letter = DeadLetter.of(delivery, reason, error, first_error=first_error, attempts=attempts, rows=rows)
    return await publish_letter(js, letter, max_payload)


async def list_dead_letters(
    js: JetStreamContext, limit: int = 100, *, after_seq: int = 0, selection: Selection = Selection()
) -> list[DeadLetter]:
    """Return dead letters, oldest first, from behind `after_seq` (the `seq` of the last one seen).

    Raises:
        BusUnreachable: JetStream does not answer.
    """
    letters: list[DeadLetter] = []
    if limit > 0:
        async for letter in walk_dead_letters(js, selection, after_seq=after_seq):
            letters.append(letter)
            if len(letters) >= limit:
                break
    return letters


async def walk_dead_letters(
    js: JetStreamContext,
    selection: Selection = Selection(),
    *,
    after_seq: int = 0,
    headers_only: bool = False,
) -> AsyncIterator[DeadLetter]:
    """Yield those dead letters that are there now, oldest first, in fetches of many; with `headers_only` no payloads.

    Raises:
        BusUnreachable: JetStream does not answer.
    """
    try:
        reader = await js.add_consumer(
            DEAD_LETTERS,
            api.ConsumerConfig(
                ack_policy=api.AckPolicy.NONE,
                deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=after_seq + 1,
                filter_subject=selection.subject,
                headers_only=headers_only,
                inactive_threshold=READER_LIFE_S,
                mem_storage=True,
            ),
        )
        left = reader.num_pending or 0
        if left == 0:
            await js.delete_consumer(DEAD_LETTERS, reader.name)
            return
        pull = await js.pull_subscribe_bind(
            consumer=reader.name, stream=DEAD_LETTERS, pending_bytes_limit=16 * FETCH_BYTES
        )
    except _ERRORS as error:
        raise bus_error(error, DEAD_LETTERS) from error
    # Payloads of half a megabyte: fewer at once, so that a walk holds a bounded amount of memory.
    most = FETCH if headers_only else FETCH_BYTES // (512 * 1024)
    try:
        while left > 0:
            try:
                messages = await pull.fetch(min(left, most), timeout=FETCH_WAIT_S)
            except nats.errors.TimeoutError:
                return  # what was counted is gone: dropped or expired meanwhile
            except _ERRORS as error:
                raise bus_error(error, DEAD_LETTERS) from error
            for message in messages:
                letter = _letter(message)
                left = min(left - 1, message.metadata.num_pending)
                if selection.takes(letter):
                    yield letter
    finally:
        await _forget(js, pull, reader.name)


async def read_dead_letter(js: JetStreamContext, seq: int) -> DeadLetter:
    """Return one dead letter by its place in DEAD_LETTERS.

    Raises:
        InputError: there is none.
        BusUnreachable: JetStream does not answer.
    """
    try:
        found = await js.get_msg(DEAD_LETTERS, seq=seq)
    except NotFoundError as error:
        raise InputError(f"there is no dead letter {seq}: replayed, dropped or expired, or never there") from error
    except _ERRORS as error:
        raise bus_error(error, DEAD_LETTERS) from error
    return DeadLetter.from_nats(found.headers, found.data or b"", seq=found.seq or seq, at=found.time)


async def drop_dead_letter(js: JetStreamContext, seq: int) -> bool:
    """Remove one dead letter for good; False if it is gone already.

    Raises:
        BusUnreachable: JetStream does not answer.
    """
    try:
        return await js.delete_msg(DEAD_LETTERS, seq)
    except APIError as error:
        if error.err_code in NO_MESSAGE:
            return False
        raise bus_error(error, DEAD_LETTERS) from error
    except _ERRORS as error:
        raise bus_error(error, DEAD_LETTERS) from error


async def count_dead_letters(js: JetStreamContext) -> dict[tuple[str, str], int]:
    """Return how many dead letters there are by (stream, reason).

    Raises:
        BusUnreachable: JetStream does not answer.
    """
    try:
        info = await js.stream_info(DEAD_LETTERS, subjects_filter="dlq.>")
    except _ERRORS as error:
        raise bus_error(error, DEAD_LETTERS) from error
    counts: dict[tuple[str, str], int] = {}
    for subject, number in (info.state.subjects or {}).items():
        stream, _, reason = subject.removeprefix("dlq.").partition(".")
        counts[stream, reason] = number
    return counts


def _letter(message: Msg) -> DeadLetter:
    meta = message.metadata
    return DeadLetter.from_nats(message.headers, message.data, seq=meta.sequence.stream, at=meta.timestamp)


async def _forget(js: JetStreamContext, pull: JetStreamContext.PullSubscription, reader: str) -> None:
    """End a reader; the server forgets it by itself where this does not reach it."""
    try:
        await pull.unsubscribe()
        await js.delete_consumer(DEAD_LETTERS, reader)
    except _ERRORS as error:
        log.debug("a reader was not removed", consumer=reader, error=str(error) or type(error).__name__)

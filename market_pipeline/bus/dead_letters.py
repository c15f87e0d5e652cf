"""Dead letters: what can never be stored, kept with its reason for a person to look at, replay or drop.

Poison comes here; an outage never does: it stops the consumers, and the messages wait in their streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import blake2b
from urllib.parse import quote, unquote

import nats.errors
import structlog
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NotFoundError
from nats.js.errors import Error as JetStreamError

from market_pipeline.bus.consumer import Delivery
from market_pipeline.bus.publisher import STORE_FAILED, PubAck
from market_pipeline.bus.streams import DEAD_LETTERS, bus_error
from market_pipeline.bus.subjects import dlq_subject
from market_pipeline.errors import StreamFull, UnreadableBatch

log = structlog.get_logger(__name__)

PUBLISH_TIMEOUT_S = 5.0
MAX_ERROR_CHARS = 500
CORRELATION_HEADER = "Correlation-Id"
_PREFIX = "Dead-Letter-"
_SAFE = " /:.,;+@=()[]!*'\"<>?&#|{}-_"


class Reason(StrEnum):
    """Why a message or a row can never be stored. The list is fixed: alerts, counts and replays go by it."""

    UNREADABLE_ENVELOPE = "unreadable_envelope"
    UNREADABLE_PAYLOAD = "unreadable_payload"
    SCHEMA_VERSION = "schema_version"
    DIGEST_MISMATCH = "digest_mismatch"
    MALFORMED_ROW = "malformed_row"
    UNKNOWN_SYMBOL = "unknown_symbol"
    INSERT_FAILED = "insert_failed"
    VENDOR_MALFORMED_ROW = "vendor_malformed_row"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Hold one dead letter.

    stream, subject, stream_seq: where the message stood; a producer that refuses a vendor's rows names the stream and
        subject that they were meant for, and sequence 0.
    payload: untouched for a whole message, the rows alone for rows of one.
    headers: those of the message, so that it can be replayed.
    attempts: deliveries until it was given up. seq, at: its own place in DEAD_LETTERS, once it is there.
    """

    reason: Reason
    stream: str
    subject: str
    stream_seq: int
    correlation_id: str
    payload: bytes
    last_error: str
    first_error: str = ""
    attempts: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    seq: int = 0
    at: datetime | None = None

    @classmethod
    def of(
        cls,
        delivery: Delivery,
        reason: Reason | str,
        error: BaseException | str,
        *,
        first_error: str = "",
        rows: bytes | None = None,
    ) -> DeadLetter:
        """Make the dead letter of a delivery, or with `rows` (their own encoding) of some rows of it."""
        return cls(
            reason=Reason(reason),
            stream=delivery.stream,
            subject=delivery.subject,
            stream_seq=delivery.stream_seq,
            correlation_id=_correlation_id(delivery),
            payload=delivery.payload if rows is None else rows,
            last_error=str(error),
            first_error=first_error or str(error),
            attempts=delivery.deliveries,
            headers=delivery.headers,
        )

    def to_nats(self) -> dict[str, str]:
        """Return the headers: the message's own, then ours with the prefix `Dead-Letter-`."""
        ours = {
            "Reason": self.reason.value,
            "Stream": self.stream,
            "Subject": self.subject,
            "Seq": str(self.stream_seq),
            "Correlation-Id": self.correlation_id,
            "First-Error": self.first_error[:MAX_ERROR_CHARS],
            "Last-Error": self.last_error[:MAX_ERROR_CHARS],
            "Attempts": str(self.attempts),
        }
        own = {name: value for name, value in self.headers.items() if not name.startswith((_PREFIX, "Nats-"))}
        return own | {
            f"{_PREFIX}{name}": quote(value, safe=_SAFE, errors="surrogatepass")
            for name, value in ours.items()
            if value
        }


async def publish_letter(js: JetStreamContext, letter: DeadLetter) -> PubAck:
    """Publish a dead letter and return once DEAD_LETTERS has it on disk.

    Raises:
        StreamFull: DEAD_LETTERS is full: the message must stay where it is, and a person look.
        BusUnreachable: no acknowledgement; the message stays where it is and comes again.
    """
    headers = letter.to_nats()
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
    rows: bytes | None = None,
) -> PubAck:
    """Publish the dead letter of a delivery; only when this has returned may the delivery be `term`ed.

    Raises: as `publish_letter`.
    """
    return await publish_letter(js, DeadLetter.of(delivery, reason, error, first_error=first_error, rows=rows))


async def list_dead_letters(js: JetStreamContext, limit: int = 100, *, after_seq: int = 0) -> list[DeadLetter]:
    """Return dead letters, oldest first, from behind `after_seq` (the `seq` of the last one seen).

    Raises:
        BusUnreachable: JetStream does not answer.
    """
    return [letter async for letter in _walk(js, limit, after_seq)]


async def count_dead_letters(js: JetStreamContext) -> dict[tuple[str, str], int]:
    """Return how many dead letters there are by (stream, reason).

    Raises:
        BusUnreachable: JetStream does not answer.
    """
    try:
        info = await js.stream_info(DEAD_LETTERS, subjects_filter="dlq.>")
    except (APIError, JetStreamError, nats.errors.Error, TimeoutError) as error:
        raise bus_error(error, DEAD_LETTERS) from error
    counts: dict[tuple[str, str], int] = {}
    for subject, number in (info.state.subjects or {}).items():
        stream, _, reason = subject.removeprefix("dlq.").partition(".")
        counts[stream, reason] = number
    return counts


async def _walk(js: JetStreamContext, limit: int, after_seq: int) -> AsyncIterator[DeadLetter]:
    for _ in range(limit):
        try:
            found = await js.get_msg(DEAD_LETTERS, seq=after_seq + 1, subject="dlq.>", next=True)
        except NotFoundError:
            return
        except (APIError, JetStreamError, nats.errors.Error, TimeoutError) as error:
            raise bus_error(error, DEAD_LETTERS) from error
        yield _letter(found)
        assert found.seq is not None
        after_seq = found.seq


def _letter(found: api.RawStreamMsg) -> DeadLetter:
    headers = found.headers or {}
    ours = {
        name.removeprefix(_PREFIX): unquote(value, errors="surrogatepass")
        for name, value in headers.items()
        if name.startswith(_PREFIX)
    }
    if ours.get("Reason") not in set(Reason):
        # Somebody published here by hand: shown all the same, so that it can be dropped.
        ours = {"Reason": Reason.UNREADABLE_ENVELOPE, "Last-Error": "a dead letter without its own headers"}
    return DeadLetter(
        reason=Reason(ours["Reason"]),
        stream=ours.get("Stream", ""),
        subject=ours.get("Subject", ""),
        stream_seq=int(ours.get("Seq", 0)),
        correlation_id=ours.get("Correlation-Id", ""),
        payload=found.data or b"",
        last_error=ours.get("Last-Error", ""),
        first_error=ours.get("First-Error", ""),
        attempts=int(ours.get("Attempts", 1)),
        headers={name: value for name, value in headers.items() if not name.startswith((_PREFIX, "Nats-"))},
        seq=found.seq or 0,
        at=found.time,
    )


def _correlation_id(delivery: Delivery) -> str:
    try:
        return delivery.batch_headers().correlation_id
    except UnreadableBatch:
        return unquote(delivery.headers.get(CORRELATION_HEADER, ""), errors="replace")

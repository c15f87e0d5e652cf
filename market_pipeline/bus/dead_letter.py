"""The dead letter itself: its reasons, and how it is written into headers and read from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from urllib.parse import quote, unquote

from market_pipeline.bus.consumer import Delivery
from market_pipeline.bus.publisher import headers_size
from market_pipeline.errors import UnreadableBatch

MAX_ERROR_CHARS, SHORT_CHARS = 500, 40
CORRELATION_HEADER = "Correlation-Id"
_PREFIX = "Dead-Letter-"
_SAFE = " /:.,;+@=()[]!*'\"<>?&#|{}-_"
_SIZE = "Nats-Msg-Size"


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
    first_error, last_error: of the attempts, of which there were `attempts` until it was given up.
    seq, at: its own place in DEAD_LETTERS and when it came there (UTC), once it is there; size: bytes of the payload,
        known even where only the headers were fetched.
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
    size: int = 0

    @classmethod
    def of(
        cls,
        delivery: Delivery,
        reason: Reason | str,
        error: BaseException | str,
        *,
        first_error: str = "",
        attempts: int | None = None,
        rows: bytes | None = None,
    ) -> DeadLetter:
        """Make the dead letter of a delivery, or with `rows` (their own encoding) of some rows of it.

        `attempts`: how often it truly failed; default: its deliveries.
        """
        return cls(
            reason=Reason(reason),
            stream=delivery.stream,
            subject=delivery.subject,
            stream_seq=delivery.stream_seq,
            correlation_id=_correlation_id(delivery),
            payload=delivery.payload if rows is None else rows,
            last_error=str(error),
            first_error=first_error or str(error),
            attempts=delivery.deliveries if attempts is None else attempts,
            headers=delivery.headers,
        )

    def to_nats_within(self, most_bytes: int) -> dict[str, str]:
        """Return the headers cut to so many bytes: our texts first, then the longest of the message's own go.

        What cannot be buried would come again for ever. There may be more bytes, where ours alone take more.
        """
        headers = self.to_nats()
        if headers_size(headers) > most_bytes:
            headers = self.to_nats(SHORT_CHARS)
        own = sorted((name for name in headers if not name.startswith(_PREFIX)), key=lambda name: len(headers[name]))
        while own and headers_size(headers) > most_bytes:
            del headers[own.pop()]
        return headers

    def to_nats(self, most: int = MAX_ERROR_CHARS) -> dict[str, str]:
        """Return the headers: the message's own, then ours with the prefix `Dead-Letter-`, texts cut to `most`."""
        ours = {
            "Reason": self.reason.value,
            "Stream": self.stream,
            "Subject": self.subject,
            "Seq": str(self.stream_seq),
            "Correlation-Id": self.correlation_id[:most],
            "First-Error": self.first_error[:most],
            "Last-Error": self.last_error[:most],
            "Attempts": str(self.attempts),
        }
        own = {name: value for name, value in self.headers.items() if not name.startswith((_PREFIX, "Nats-"))}
        return own | {
            f"{_PREFIX}{name}": quote(value, safe=_SAFE, errors="surrogatepass")
            for name, value in ours.items()
            if value
        }

    @classmethod
    def from_nats(
        cls, headers: Mapping[str, str] | None, payload: bytes, *, seq: int, at: datetime | None
    ) -> DeadLetter:
        """Read a message of DEAD_LETTERS; one that somebody published by hand is a letter all the same."""
        given = headers or {}
        ours = {
            name.removeprefix(_PREFIX): unquote(value, errors="surrogatepass")
            for name, value in given.items()
            if name.startswith(_PREFIX)
        }
        if ours.get("Reason") not in set(Reason):
            # Shown so that it can be dropped.
            ours = {"Reason": Reason.UNREADABLE_ENVELOPE, "Last-Error": "a dead letter without its own headers"}
        return cls(
            reason=Reason(ours["Reason"]),
            stream=ours.get("Stream", ""),
            subject=ours.get("Subject", ""),
            stream_seq=_number(ours.get("Seq"), 0),
            correlation_id=ours.get("Correlation-Id", ""),
            payload=payload,
            last_error=ours.get("Last-Error", ""),
            first_error=ours.get("First-Error", ""),
            attempts=_number(ours.get("Attempts"), 1),
            headers={name: value for name, value in given.items() if not name.startswith((_PREFIX, "Nats-"))},
            seq=seq,
            at=at,
            size=_number(given.get(_SIZE), len(payload)),
        )


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isdecimal() else otherwise


def _correlation_id(delivery: Delivery) -> str:
    try:
        return delivery.batch_headers().correlation_id
    except UnreadableBatch:
        return unquote(delivery.headers.get(CORRELATION_HEADER, ""), errors="replace")

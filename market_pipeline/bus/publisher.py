"""The publisher: every batch goes to JetStream through here, a bounded number at a time."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import APIError
from nats.js.errors import Error as JetStreamError

from market_pipeline.bus.backoff import Backoff
from market_pipeline.bus.connection import closed_error
from market_pipeline.bus.envelope import EncodedBatch
from market_pipeline.bus.limits import message_limit
from market_pipeline.bus.streams import DUPLICATE_WINDOW_S, NO_RESOURCES, NO_STORAGE, bus_error
from market_pipeline.errors import BusError, BusUnreachable, PayloadTooLarge, StreamFull

log = structlog.get_logger(__name__)

IN_FLIGHT = 64
ACK_TIMEOUT_S = 5.0
RETRY_FOR_S = 30.0
WAIT_FULL_S = 60.0

STORE_FAILED, MESSAGE_TOO_LARGE = 10077, 10054
_FULL = frozenset({STORE_FAILED, NO_STORAGE, NO_RESOURCES})
_HEADER_LINE = len(b"NATS/1.0\r\n") + len(b"\r\n")


@dataclass(frozen=True, slots=True)
class PubAck:
    """Say where JetStream keeps a message; `duplicate` when an earlier send of the same publication had arrived."""

    stream: str
    seq: int
    duplicate: bool

    @property
    def spooled(self) -> bool:
        """Whether it waits on disk instead: never, this is JetStream's word."""
        return False


@dataclass(slots=True)
class PublisherCounters:
    """Count what a publisher did: `seconds_full` and `seconds_unreachable` are waited, summed over publications."""

    published: int = 0
    bytes: int = 0
    resent: int = 0
    duplicates: int = 0
    failed: int = 0
    in_flight: int = 0
    seconds_full: float = 0.0
    seconds_unreachable: float = 0.0


class Publisher:
    """Publish batches to JetStream, at most `in_flight` at once; safe to share between tasks of one event loop.

    A publication has a random Nats-Msg-Id, the same each time that it is sent again, so JetStream drops what arrives
    twice within its duplicate window. (An id made of the content would make a repair of equal content do nothing.)
    After a restart of the server the window forgets what was consumed already: the store's key absorbs the rest.
    """

    def __init__(
        self,
        nc: Client,
        js: JetStreamContext,
        *,
        in_flight: int = IN_FLIGHT,
        ack_timeout_s: float = ACK_TIMEOUT_S,
        retry_for_s: float = RETRY_FOR_S,
        wait_full_s: float = WAIT_FULL_S,
    ) -> None:
        if wait_full_s + retry_for_s + 2 * ack_timeout_s >= DUPLICATE_WINDOW_S:
            raise ValueError(f"all waiting must end within the duplicate window of {DUPLICATE_WINDOW_S:g} s")
        self._nc = nc
        self._js = js
        self._window = asyncio.Semaphore(in_flight)
        self._ack_timeout_s = ack_timeout_s
        self._retry_for_s = retry_for_s
        self._wait_full_s = wait_full_s
        self.counters = PublisherCounters()

    async def publish(self, batch: EncodedBatch, subject: str) -> PubAck:
        """Publish one batch and return once JetStream has it on disk; stamps the stage `published`.

        Waits for a place in the window, then while the stream is full, and tries again while JetStream is away.

        Raises:
            PayloadTooLarge: more than the server takes; nothing was sent.
            StreamFull: the stream had no room for `wait_full_s`.
            BusUnreachable: no acknowledgement for `retry_for_s`; the batch may or may not be in the stream.
        """
        async with self._window:
            headers = batch.headers.with_stage("published").to_nats()
            return await self._publish(subject, batch.payload, headers)

    async def publish_message(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> PubAck:
        """Publish bytes as they are, under the same rules as `publish`; a Nats-Msg-Id in the headers is kept."""
        async with self._window:
            return await self._publish(subject, payload, dict(headers))

    async def _publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> PubAck:
        headers.setdefault("Nats-Msg-Id", secrets.token_hex(16))
        self.assert_size(subject, payload, headers)
        self.counters.in_flight += 1
        try:
            ack = await self._until_acknowledged(subject, payload, headers)
        except BaseException:
            self.counters.failed += 1
            raise
        finally:
            self.counters.in_flight -= 1
        self.counters.published += 1
        self.counters.bytes += len(payload)
        self.counters.duplicates += ack.duplicate
        return ack

    def assert_size(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        """Keep from the wire what the server would answer by closing the connection: the client counts no headers.

        Raises:
            PayloadTooLarge: more than the streams take.
        """
        size, limit = len(payload) + headers_size(headers), message_limit(self._nc.max_payload)
        if size > limit:
            raise PayloadTooLarge(
                f"{subject}: {size} bytes with headers, the streams take {limit}: "
                "cut smaller batches or raise the server's max_payload"
            )

    async def _until_acknowledged(self, subject: str, payload: bytes, headers: dict[str, str]) -> PubAck:
        away, full = Backoff(self._retry_for_s), Backoff(self._wait_full_s)
        sent = False
        while True:
            started = time.monotonic()
            try:
                await self._connected(away.seconds_left)
                self.counters.resent += sent
                sent = True
                return await self._send(subject, payload, headers)
            except StreamFull as error:
                # It answers, so it is not away.
                away.reset()
                if full.first:
                    log.info("stream full, waiting", subject=subject, error=str(error))
                if not await full.wait():
                    raise StreamFull(f"{error}; no room for {self._wait_full_s:g} s: is a bridge consuming?") from error
                self.counters.seconds_full += time.monotonic() - started
            except BusUnreachable as error:
                if self._nc.is_closed:
                    raise
                if away.first:
                    log.warning("publication not acknowledged, sending again", subject=subject, error=str(error))
                if not await away.wait():
                    raise BusUnreachable(
                        f"{subject}: not acknowledged for {self._retry_for_s:g} s ({error})"
                    ) from error
                self.counters.seconds_unreachable += time.monotonic() - started

    async def _connected(self, seconds: float) -> None:
        """Wait for the client to reconnect, instead of filling its buffer with megabytes."""
        until = time.monotonic() + seconds
        while not self._nc.is_connected:
            if self._nc.is_closed:
                raise closed_error(self._nc)
            if time.monotonic() >= until:
                raise BusUnreachable("no connection to NATS")
            await asyncio.sleep(0.05)

    async def _send(self, subject: str, payload: bytes, headers: dict[str, str]) -> PubAck:
        try:
            # The outer bound also ends a write that hangs in the client's buffer while the connection dies.
            async with asyncio.timeout(2 * self._ack_timeout_s):
                ack = await self._js.publish(subject, payload, timeout=self._ack_timeout_s, headers=headers)
        except (APIError, JetStreamError, nats.errors.Error, TimeoutError, OSError) as error:
            raise _publish_error(error, subject) from error
        return PubAck(ack.stream, ack.seq, bool(ack.duplicate))


def headers_size(headers: Mapping[str, str]) -> int:
    """Return the bytes that the headers take on the wire, which count against the server's max_payload."""
    return _HEADER_LINE + sum(len(key.encode()) + len(value.encode()) + 4 for key, value in headers.items())


def _publish_error(error: Exception, subject: str) -> BusError:
    if isinstance(error, APIError):
        if error.err_code in _FULL:
            return StreamFull(f"{subject}: {error.description}")
        if error.err_code == MESSAGE_TOO_LARGE:
            return PayloadTooLarge(f"{subject}: {error.description}")
    return bus_error(error, subject)

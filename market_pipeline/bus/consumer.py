"""The consumer of a stream's batches: pulls, holds, acknowledges, gives back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import APIError
from nats.js.errors import Error as JetStreamError

from market_pipeline.bus.connection import closed_error
from market_pipeline.bus.envelope import BatchHeaders
from market_pipeline.bus.lag import Lag, consumer_lag
from market_pipeline.bus.pull import PullBroken, Puller
from market_pipeline.bus.streams import ACK_WAIT_S, BRIDGE, bus_error, ensure_consumer
from market_pipeline.errors import BusUnreachable
from market_pipeline.tasks import end_tasks

log = structlog.get_logger(__name__)

KEEP_ALIVE_S = 5.0
STALLED_S = 10.0
CONFIRM_TIMEOUT_S = 5.0
MEND_PAUSE_S = 0.2
_SERVER_HEADERS = "Nats-"


@dataclass(frozen=True, slots=True)
class Delivery:
    """Hold one delivery of one message.

    headers: as they came, without those of the server; `batch_headers()` reads them as an envelope.
    stream_seq: the message's sequence in its stream; deliveries: 1 the first time, then more.
    published_at, received_at: when the stream took it and when we got it, UTC.
    reply: where the server expects the answer.
    """

    headers: Mapping[str, str]
    payload: bytes
    subject: str
    stream: str
    stream_seq: int
    deliveries: int
    published_at: datetime
    received_at: datetime
    reply: str = field(repr=False)

    def batch_headers(self) -> BatchHeaders:
        """Read the envelope; raises UnreadableBatch where it is none."""
        return BatchHeaders.from_nats(self.headers)


class BatchConsumer:
    """Pull from one durable consumer; several processes share it by its name and compete.

    Usage: `async with BatchConsumer(nc, js, HISTORY) as consumer: deliveries = await consumer.fetch(64, 1.0)`.
    Nothing is acknowledged by itself. What is neither acknowledged nor kept alive comes back after `ack_wait_s`.
    """

    def __init__(
        self,
        nc: Client,
        js: JetStreamContext,
        stream: str,
        durable: str = BRIDGE,
        *,
        ack_wait_s: float = ACK_WAIT_S,
        stalled_s: float = STALLED_S,
    ) -> None:
        self.stream, self.durable = stream, durable
        self._nc, self._js = nc, js
        self._ack_wait_s = ack_wait_s
        self._stalled_s = stalled_s
        self._puller: Puller | None = None
        self._silent_s = 0.0  # waited in fetches since the last message
        self.resubscribed = 0

    async def __aenter__(self) -> BatchConsumer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Create the consumer where it is missing and subscribe.

        Raises:
            StreamMissing: the stream does not exist. SettingsError: it is a work queue with another consumer.
            BusUnreachable: JetStream does not answer.
        """
        await ensure_consumer(self._js, self.stream, self.durable, ack_wait_s=self._ack_wait_s)
        await self._subscribe()

    async def close(self) -> None:
        """End the subscription; messages that are held come back to other workers after `ack_wait_s`."""
        if self._puller is not None:
            await self._puller.close()
            self._puller = None

    async def fetch(self, max_messages: int, max_wait_s: float) -> list[Delivery]:
        """Return what is there, at most `max_messages`; wait up to `max_wait_s` for the first, never for the last.

        While the server is away this returns nothing: the client reconnects by itself, and the watchdog creates the
        subscription anew when messages wait and none has come for `stalled_s`.

        Raises:
            BusUnreachable: the connection is closed for good.
            StreamMissing: the stream was deleted.
        """
        if self._nc.is_closed:
            raise closed_error(self._nc)
        if self._puller is None:
            raise RuntimeError("the consumer is not started")
        if not self._nc.is_connected:
            # A request now would be kept by the client and take messages after the reconnect, for nobody.
            await asyncio.sleep(min(max_wait_s, 0.1))
            return []
        started = time.monotonic()
        try:
            messages = await self._puller.pull(max_messages, max_wait_s)
        except PullBroken as error:
            await self._mend(str(error))
            return []
        if messages:
            self._silent_s = 0.0
            return [_delivery(message) for message in messages]
        self._silent_s += time.monotonic() - started
        if self._silent_s > self._stalled_s:
            await self._watch()
        return []

    async def ack(self, deliveries: Iterable[Delivery], *, confirm: bool = False) -> None:
        """Acknowledge: the messages leave a work queue. With `confirm` return once the server has done so.

        Without it a lost acknowledgement means one more delivery, which the store absorbs.

        Raises:
            BusUnreachable: the acknowledgements could not be sent, or not confirmed in time.
        """
        if not confirm:
            await self._send(deliveries, b"+ACK")
            return
        try:
            await asyncio.gather(
                *(self._nc.request(each.reply, b"+ACK", timeout=CONFIRM_TIMEOUT_S) for each in deliveries)
            )
        except (nats.errors.Error, TimeoutError) as error:
            raise bus_error(error, f"acknowledging on {self.stream}") from error

    async def give_back(self, deliveries: Iterable[Delivery], delay_s: float = 0.0) -> None:
        """Give messages back, to any worker, after `delay_s`; their next delivery counts one more."""
        payload = b'-NAK {"delay": %d}' % round(delay_s * 1e9) if delay_s > 0 else b"-NAK"
        await self._send(deliveries, payload)

    async def reset(self) -> None:
        """Let everything that is not acknowledged be delivered again now, in the order of the stream.

        For the one worker that consumes in order: what it, or one that died, was sent and does not hold any more need
        not wait for `ack_wait_s` while later messages pass it. Acknowledgements under way still count.

        Raises:
            BusUnreachable: JetStream does not answer, or is too old to know the request (it came with 2.14).
        """
        subject = f"$JS.API.CONSUMER.RESET.{self.stream}.{self.durable}"
        try:
            answer = await self._nc.request(subject, b"", timeout=CONFIRM_TIMEOUT_S)
        except (nats.errors.Error, TimeoutError) as error:
            raise bus_error(error, f"resetting {self.durable} of {self.stream} (with NATS 2.14 or later)") from error
        if said := json.loads(answer.data).get("error"):
            raise BusUnreachable(f"resetting {self.durable} of {self.stream}: JetStream says {said.get('description')}")

    async def ack_floor(self) -> int:
        """Return the stream's sequence up to which everything is acknowledged, or has left the stream.

        Raises:
            BusUnreachable: JetStream does not answer.
        """
        try:
            info = await self._js.consumer_info(self.stream, self.durable)
        except (APIError, JetStreamError, nats.errors.Error, TimeoutError) as error:
            raise bus_error(error, f"consumer {self.durable} of {self.stream}") from error
        return info.ack_floor.stream_seq if info.ack_floor else 0

    async def in_progress(self, deliveries: Iterable[Delivery]) -> None:
        """Start the messages' `ack_wait_s` again."""
        await self._send(deliveries, b"+WPI")

    async def term(self, delivery: Delivery) -> None:
        """End a message that a dead letter holds already; it is never delivered again. Waits for the server.

        Raises:
            BusUnreachable: not confirmed; the message may come again, and its dead letter is then a duplicate.
        """
        try:
            await self._nc.request(delivery.reply, b"+TERM", timeout=CONFIRM_TIMEOUT_S)
        except (nats.errors.Error, TimeoutError) as error:
            raise bus_error(error, f"terminating {self.stream} {delivery.stream_seq}") from error

    @asynccontextmanager
    async def keep_alive(self, deliveries: Sequence[Delivery], every_s: float = KEEP_ALIVE_S) -> AsyncIterator[None]:
        """Send `in_progress` every few seconds for as long as the block runs."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(every_s)
                try:
                    await self.in_progress(deliveries)
                except BusUnreachable as error:
                    # Not ours to end: the block's own acknowledgement will tell.
                    log.warning("messages not kept alive", stream=self.stream, held=len(deliveries), error=str(error))

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            await end_tasks((task,))

    async def pending(self) -> Lag:
        """Ask the server how far this consumer is behind.

        Raises:
            BusUnreachable: JetStream does not answer, or stream or consumer are gone.
        """
        return await consumer_lag(self._js, self.stream, self.durable)

    async def _send(self, deliveries: Iterable[Delivery], answer: bytes) -> None:
        try:
            for each in deliveries:
                await self._nc.publish(each.reply, answer)
        except nats.errors.Error as error:
            raise bus_error(error, f"answering {answer[:4].decode()} on {self.stream}") from error

    async def _watch(self) -> None:
        """Ask whether the silence is real; create the subscription anew when messages wait behind it.

        A deaf inbox shows in two ways: messages that nobody asks for, or messages delivered again and again to nobody.
        Both may also be other workers' doing, so this errs on the side of a new inbox, which costs nothing.
        """
        self._silent_s = 0.0
        try:
            info = await self._js.consumer_info(self.stream, self.durable)
        except (APIError, JetStreamError, nats.errors.Error, TimeoutError) as error:
            await self._mend(str(error))
            return
        waiting, again, held = info.num_pending or 0, info.num_redelivered or 0, info.num_ack_pending or 0
        if again or (waiting and held < (info.config.max_ack_pending or 0)):
            await self._mend(
                f"{waiting} messages wait, {again} come again, and none came here for {self._stalled_s:g} s"
            )

    async def _mend(self, why: str) -> None:
        log.warning("subscription created anew", stream=self.stream, consumer=self.durable, why=why)
        self.resubscribed += 1
        try:
            await ensure_consumer(self._js, self.stream, self.durable, ack_wait_s=self._ack_wait_s)
            await self._subscribe()
        except BusUnreachable as error:
            log.warning("bus away, trying again at the next fetch", stream=self.stream, error=str(error))
        await asyncio.sleep(MEND_PAUSE_S)

    async def _subscribe(self) -> None:
        old = self._puller
        try:
            self._puller = await Puller.open(self._nc, self.stream, self.durable)
        except nats.errors.Error as error:
            raise bus_error(error, f"subscribing to {self.stream}") from error
        if old is not None:
            await old.close()


def _delivery(message: Msg) -> Delivery:
    meta = message.metadata
    headers = {name: value for name, value in (message.headers or {}).items() if not name.startswith(_SERVER_HEADERS)}
    return Delivery(
        headers=headers,
        payload=message.data,
        subject=message.subject,
        stream=meta.stream,
        stream_seq=meta.sequence.stream,
        deliveries=meta.num_delivered,
        published_at=meta.timestamp,
        received_at=datetime.now(UTC),
        reply=message.reply,
    )

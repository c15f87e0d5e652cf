"""Deliveries of TICKS in the order of the stream, and what to do where messages lack."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from market_pipeline.bus.consumer import BatchConsumer, Delivery
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.tick_reader import next_in_stream, ticks_span
from market_pipeline.errors import MarketPipelineError, Transient
from market_pipeline.live.tick_bridge.group import ticks_said

log = structlog.get_logger(__name__)

MAX_MESSAGES = 512
MAX_TICKS = 16_384
WAIT_S = 0.5
CHECK_EVERY_S = 1.0
MAX_RESETS = 10


class StreamReplaced(MarketPipelineError, Transient):
    """The stream is another one than before: it was lost and made anew."""


class OrderedSource:
    """Fetch the messages of one consumer, in order, for the only one that consumes.

    A message that was sent and never came, because a connection broke, would come again after `ack_wait`, behind later
    ones: so, if the stream still holds it, the consumer is reset, and everything unacknowledged comes again in order.
    """

    def __init__(
        self,
        bus: BusSession,
        consumer: BatchConsumer,
        stream: str,
        next_seq: int,
        on_hole: Callable[[int], Awaitable[None]],
        *,
        gather_s: float,
    ) -> None:
        """Prepare to go on at `next_seq` of the stream created at `stream`; `on_hole` is told up to where one goes."""
        self._bus, self._consumer, self._stream = bus, consumer, stream
        self._next = next_seq
        self._on_hole = on_hole
        self._gather_s = gather_s
        self._reset_for = self._resets = 0
        self._checked_at = 0.0
        self._subscriptions = consumer.resubscribed

    async def fetch(self) -> AsyncIterator[list[Delivery]]:
        """Yield what is there as lists without a hole inside; what was delivered before may come again.

        Raises:
            StreamReplaced: the sequences mean something else now.
            BusUnreachable: JetStream does not answer, or the connection is closed for good.
            StreamMissing: the stream was deleted.
        """
        found = await self._consumer.fetch(MAX_MESSAGES, WAIT_S)
        if found and len(found) < MAX_MESSAGES and ticks_said(found) < MAX_TICKS:
            # few now: a transaction costs by itself, not by its rows
            await asyncio.sleep(self._gather_s)
            found += await self._consumer.fetch(MAX_MESSAGES - len(found), 0.0)
        if self._subscriptions != self._consumer.resubscribed:
            self._subscriptions = self._consumer.resubscribed
            await self._check_stream(0.0)
        whole: list[Delivery] = []
        for delivery in found:
            if delivery.stream_seq > self._next:
                if whole:
                    yield whole
                    whole = []
                if not await self._pass_over(delivery.stream_seq):
                    return
            elif delivery.stream_seq < self._next:
                await self._check_stream(CHECK_EVERY_S)
            self._next = max(self._next, delivery.stream_seq + 1)
            whole.append(delivery)
        if whole:
            yield whole

    async def _pass_over(self, came: int) -> bool:
        """Return True when the messages before `came` are gone for good; else ask for them."""
        await self._check_stream(0.0)
        there = await next_in_stream(self._bus, self._next)
        self._resets = self._resets + 1 if self._reset_for == self._next else 0
        self._reset_for = self._next
        # one that is there and does not come was acknowledged by somebody else: then it is of no use to ask on
        if there is not None and there < came and self._resets < MAX_RESETS:
            log.warning("ticks_missing_in_delivery", next_seq=self._next, came=came)
            await self._consumer.reset()
            return False
        await self._on_hole(came - 1)
        return True

    async def _check_stream(self, every_s: float) -> None:
        if time.monotonic() - self._checked_at < every_s:
            return
        self._checked_at = time.monotonic()
        if (await ticks_span(self._bus)).created != self._stream:
            raise StreamReplaced("the stream TICKS was made anew")

"""Reading TICKS from a sequence on, in order and without a hole, for a consumer that keeps its own place."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js import api
from nats.js.errors import NotFoundError

from market_pipeline.bus.connection import closed_error
from market_pipeline.bus.kv import KV_ERRORS
from market_pipeline.bus.pull import PullBroken, Puller
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import TICKS, bus_error
from market_pipeline.bus.subjects import market_subject
from market_pipeline.errors import BusUnreachable, StreamMissing

log = structlog.get_logger(__name__)

# The server ends a consumer that nobody pulls from for so long; it is made anew when somebody does.
INACTIVE_S = 60.0
STALLED_S = 5.0
# Whoever did something else for so long, such as waiting for a server to publish to, knows of no silence.
UNHEARD_S = 1.0
MEND_PAUSE_S = 0.2
# Who has read everything is not behind for so long: the stream keeps far more.
CURRENT_S = 2.0


@dataclass(frozen=True, slots=True)
class TickMessage:
    """Hold one message of TICKS as it lies there: its sequence, subject, headers and payload.

    after_expired: messages before it, perhaps of the symbols asked for, left the stream before they were read.
    """

    seq: int
    subject: str
    headers: Mapping[str, str]
    payload: bytes
    after_expired: bool = False


@dataclass(frozen=True, slots=True)
class StreamSpan:
    """Say what a stream holds: its first and last sequence; last is first − 1 when it is empty.

    created: when the stream was made, as text: a stream that was lost and made anew counts from 1 again.
    """

    first_seq: int
    last_seq: int
    created: str = ""


async def ticks_span(bus: BusSession) -> StreamSpan:
    """Return what TICKS holds now.

    Raises:
        StreamMissing: the stream does not exist.
        BusUnreachable: JetStream does not answer.
    """
    try:
        info = await bus.js.stream_info(TICKS)
    except NotFoundError as error:
        raise StreamMissing(f"the stream {TICKS} does not exist: start with ensure_streams") from error
    except KV_ERRORS as error:
        raise bus_error(error, f"stream {TICKS}") from error
    return StreamSpan(info.state.first_seq, info.state.last_seq, str(info.created))


async def next_in_stream(bus: BusSession, seq: int) -> int | None:
    """Return the sequence of the first message that TICKS holds from `seq` on; None if it holds none.

    Raises:
        BusUnreachable: JetStream does not answer.
    """
    try:
        return (await bus.js.get_msg(TICKS, seq=seq, subject=">", next=True)).seq
    except NotFoundError:
        return None
    except KV_ERRORS as error:
        raise bus_error(error, f"message {seq} of {TICKS}") from error


class TickReader:
    """Read the messages of some symbols from a sequence on; nothing is acknowledged.

    next_seq: where it goes on. pending: messages that wait on the server, as it said last. away_at: monotonic time at
    which the server was last found to be away or not to answer, or at which nobody had listened for a while.
    A message that the server sent and that never came, because a connection broke, is asked for again: the consumer on
    the server lives only as long as its messages follow each other.
    """

    def __init__(self, bus: BusSession, symbols: Iterable[str], next_seq: int, *, stalled_s: float = STALLED_S) -> None:
        """Prepare to read the symbols (keys) from `next_seq` on."""
        self._bus = bus
        self._subjects = [market_subject(symbol, "tick") for symbol in symbols]
        self._stalled_s = stalled_s
        self._puller: Puller | None = None
        self._name = ""
        self._taken = 0  # messages of the consumer of now
        self._heard_at = time.monotonic()
        self._behind = True  # until it is known that nothing waits
        self.next_seq = next_seq
        self.pending = 0
        self.reopened = 0
        self.away_at = -math.inf
        self._listened_at = time.monotonic()

    @property
    def at_end(self) -> bool:
        """Whether everything that the stream holds has been fetched."""
        return self._puller is not None and self.pending == 0

    async def fetch(self, max_messages: int, max_wait_s: float) -> list[TickMessage]:
        """Return what comes next, at most `max_messages`; wait up to `max_wait_s` for the first.

        While the server is away this returns nothing; afterwards it goes on where it was.

        Raises:
            BusUnreachable: the connection is closed for good.
        """
        if time.monotonic() - self._listened_at > UNHEARD_S:
            self.away_at = time.monotonic()
        try:
            return await self._fetch(max_messages, max_wait_s)
        finally:
            self._listened_at = time.monotonic()

    async def _fetch(self, max_messages: int, max_wait_s: float) -> list[TickMessage]:
        if self._bus.nc.is_closed:
            raise closed_error(self._bus.nc)
        if not self._bus.nc.is_connected:
            await self._lose()
            await asyncio.sleep(min(max_wait_s, 0.1))
            return []
        try:
            if self._puller is None:
                await self._open()
            assert self._puller is not None
            messages = await self._puller.pull(max_messages, max_wait_s)
        except (PullBroken, BusUnreachable) as error:
            log.warning("tick_reader_broken", next_seq=self.next_seq, error=str(error))
            await self._lose()
            await asyncio.sleep(MEND_PAUSE_S)
            return []
        if not messages:
            await self._watch()
            return []
        try:
            return await self._in_order(messages)
        except BusUnreachable as error:
            log.warning("tick_reader_broken", next_seq=self.next_seq, error=str(error))
            await self._lose()
            return []

    async def close(self) -> None:
        """End the consumer on the server."""
        await self._drop()

    async def _in_order(self, messages: list[Msg]) -> list[TickMessage]:
        first_seq = await self._first_of_stream(messages)
        self._heard_at = time.monotonic()
        taken: list[TickMessage] = []
        for message in messages:
            meta = message.metadata
            if meta.sequence.consumer != self._taken + 1:
                log.warning("tick_reader_missed_messages", next_seq=self.next_seq, came=meta.sequence.stream)
                await self._drop()
                break
            self._taken += 1
            seq = meta.sequence.stream
            expired = self.next_seq < min(seq, first_seq)
            self.next_seq = seq + 1
            self.pending = meta.num_pending
            taken.append(TickMessage(seq, message.subject, message.headers or {}, message.data, expired))
        return taken

    async def _first_of_stream(self, messages: list[Msg]) -> int:
        """Return the first sequence that the stream holds, where messages may have left it before they were read; or 0.

        Sequences are missing where other symbols have theirs. Only of a reader that was behind it must be asked: who
        has read all that there was finds nothing gone a moment later.
        """
        last = messages[-1].metadata
        behind, self._behind = self._behind or time.monotonic() - self._heard_at > CURRENT_S, last.num_pending > 0
        if not behind or last.sequence.stream - self.next_seq + 1 == len(messages):
            return 0
        return (await ticks_span(self._bus)).first_seq

    async def _open(self) -> None:
        name = f"reader_{secrets.token_hex(8)}"
        config = api.ConsumerConfig(
            name=name,
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self.next_seq,
            ack_policy=api.AckPolicy.NONE,
            filter_subjects=self._subjects,
            inactive_threshold=INACTIVE_S,
            mem_storage=True,
            num_replicas=1,
        )
        try:
            info = await self._bus.js.add_consumer(TICKS, config)
            self._puller = await Puller.open(self._bus.nc, TICKS, name)
        except NotFoundError as error:
            raise BusUnreachable(f"the stream {TICKS} does not exist") from error
        except KV_ERRORS as error:
            raise bus_error(error, f"a consumer of {TICKS}") from error
        self._name, self._taken = name, 0
        self._behind = True
        self._heard_at = time.monotonic()
        self.pending = info.num_pending or 0
        self.reopened += 1

    async def _watch(self) -> None:
        """After a silence ask whether it is real, and begin anew where messages wait behind it."""
        if time.monotonic() - self._heard_at < self._stalled_s:
            return
        self._heard_at = time.monotonic()
        try:
            info = await self._bus.js.consumer_info(TICKS, self._name)
        except KV_ERRORS as error:
            log.warning("tick_reader_lost_consumer", next_seq=self.next_seq, error=str(error))
            await self._lose()
            return
        self.pending = info.num_pending or 0
        delivered = info.delivered.consumer_seq if info.delivered else 0
        if self.pending or delivered != self._taken:
            log.warning("tick_reader_stalled", next_seq=self.next_seq, waiting=self.pending)
            await self._drop()

    async def _lose(self) -> None:
        """Drop the consumer, since its server is away."""
        await self._drop()
        self.away_at = time.monotonic()

    async def _drop(self) -> None:
        puller, self._puller = self._puller, None
        if puller is None:
            return
        await puller.close()
        if self._bus.nc.is_connected:
            with suppress(*KV_ERRORS, nats.errors.Error):
                await self._bus.nc.jetstream(timeout=1).delete_consumer(TICKS, self._name)

"""Publishing that survives an outage: JetStream while it answers, the spool on disk while it does not.

breaker closed ──► publish ──► PubAck
                      │ BusUnreachable, or the breaker is open, or this subject has something in the spool
                      ▼
                    spool ──► Spooled        (StreamFull never comes here: the caller waits)
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from market_pipeline.breaker import Breakers
from market_pipeline.bus.envelope import EncodedBatch, now_ms
from market_pipeline.bus.publisher import PubAck, Publisher, PublisherCounters
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.spool import Spool, SpoolRecord, spool_root
from market_pipeline.bus.spool.disk import spool_folders
from market_pipeline.bus.spool.drain import Drain
from market_pipeline.bus.spool.folder import left_behind
from market_pipeline.bus.spool.spool import OnGivenUp
from market_pipeline.errors import BreakerOpen, BusUnreachable, SpoolError, StreamFull
from market_pipeline.settings import Settings
from market_pipeline.tasks import end_tasks

log = structlog.get_logger(__name__)

# Short: the disk is there for what takes longer.
RETRY_FOR_S = 2.0
ACK_TIMEOUT_S = 2.0
SETTLE_POLL_S = 0.1
# With so few records left on disk a publication waits for them, for so long, instead of going behind them.
HANDOVER = 256
HANDOVER_S = 1.0


@dataclass(frozen=True, slots=True)
class Spooled:
    """Say that a publication is on this machine's disk and NOT in JetStream yet."""

    folder: Path
    subject: str
    msg_id: str

    @property
    def spooled(self) -> bool:
        """Whether it waits on disk: always."""
        return True


class SpoolingPublisher:
    """Publish like a `Publisher`, and spool what NATS cannot take.

    Publications of one subject that follow each other reach the stream in that order: while the spool holds one of a
    subject, the next ones go behind it. The id of a publication stays the same from its first attempt to its last, so
    that what NATS had in fact taken is dropped within the duplicate window; beyond it the stores absorb it.

    What is drained: the own spool, as soon as NATS answers, and the folders of others whose process is gone.
    """

    def __init__(
        self,
        bus: BusSession,
        settings: Settings,
        name: str,
        *,
        publisher: Publisher | None = None,
        on_given_up: OnGivenUp | None = None,
        breakers: Breakers | None = None,
    ) -> None:
        """Prepare; call `start` to adopt and drain what others left, `close` at the end.

        Args:
            name: shown to those who look at the spool.
            publisher: default: one that gives up after about 2 s without an answer.
            on_given_up: told of the oldest records when they are given up to make room (`spool.full = "oldest"`), and
                returns what is published in their place; without it a full spool always refuses.
            breakers: those of the run, among which the one of this edge is to be shown.
        """
        self._nc = bus.nc
        self._publisher = publisher or Publisher(bus.nc, bus.js, retry_for_s=RETRY_FOR_S, ack_timeout_s=ACK_TIMEOUT_S)
        self.breaker = (breakers or Breakers(settings.breaker)).of("publish", answers=(StreamFull,))
        self.spool = Spool(spool_root(settings), name, settings.spool, on_given_up)
        self._drain = Drain(self.spool, self._drain_one, lambda: bool(bus.nc.is_connected), self.breaker.try_now)
        self._draining: asyncio.Task[None] | None = None

    @property
    def counters(self) -> PublisherCounters:
        """What was published, drained records included."""
        return self._publisher.counters

    @property
    def waiting(self) -> int:
        """Publications of this publisher that wait on disk."""
        return self.spool.waiting

    def facts(self) -> dict[str, int | float | str]:
        """Return flat facts for a ServiceHealth."""
        counters, drain = self.spool.counters, self._drain.counters
        return {
            "breaker_publish": self.breaker.state,
            "breaker_publish_opened": self.breaker.snapshot().opened,
            "spool_waiting": self.spool.waiting,
            "spool_spooled": counters.spooled,
            "spool_drained": drain.drained,
            "spool_refused": counters.refused + drain.refused,
            "spool_given_up": counters.given_up,
            "spool_damaged": counters.damaged,
            "spool_adopted": drain.adopted,
        }

    def problems(self) -> list[str]:
        """Return what is wrong, in words a person can act on."""
        problems = []
        if self.spool.full:
            problems.append(f"the spool {self.spool.root} has no room: see spool.max_bytes and the disk")
        if self.spool.waiting:
            problems.append(f"{self.spool.waiting} publications wait in the spool {self.spool.root}")
        if (task := self._draining) is not None and task.done() and not task.cancelled() and task.exception():
            problems.append(f"the spool {self.spool.root} is not drained: {task.exception()}")
        return problems

    async def publish(self, batch: EncodedBatch, subject: str) -> PubAck | Spooled:
        """Publish one batch, or spool it; stamps the stage `published`. See `publish_message`."""
        return await self.publish_message(subject, batch.payload, batch.headers.with_stage("published").to_nats())

    async def publish_message(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> PubAck | Spooled:
        """Publish bytes as they are, or spool them; a Nats-Msg-Id in the headers is kept.

        Raises:
            PayloadTooLarge: more than the server takes; neither published nor spooled.
            StreamFull: the stream had no room for as long as the publisher waits; never spooled.
            SpoolFull: NATS is away and the spool has no room: the producer has to wait.
            SpoolError: NATS is away and the disk fails.
        """
        headers = {"Nats-Msg-Id": secrets.token_hex(16), **headers}
        if await self._may_send(subject):
            try:
                with self.breaker.attempt():
                    return await self._publisher.publish_message(subject, payload, headers)
            except (BusUnreachable, BreakerOpen) as error:
                log.debug("publication_spooled", subject=subject, error=str(error))
        return await self.spool_message(subject, payload, headers)

    async def spool_message(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> Spooled:
        """Spool bytes without trying to publish them; the drain does.

        Raises:
            PayloadTooLarge, SpoolFull, SpoolError: it is not kept.
        """
        headers = {"Nats-Msg-Id": secrets.token_hex(16), **headers}
        self._publisher.assert_size(subject, payload, headers)
        msg_id = headers.pop("Nats-Msg-Id")
        await self.spool.append(SpoolRecord(subject, msg_id, headers, payload, now_ms()))
        self.start()
        return Spooled(self.spool.writer.folder or self.spool.root, subject, msg_id)

    def start(self) -> None:
        """Adopt folders whose owner is gone, and drain, from now on; it starts by itself with the first spooling."""
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain.run(), name="spool drain")
            self._draining.add_done_callback(_say_why)

    async def wait_drained(self, seconds: float) -> bool:
        """Wait until nothing of this publisher is left on disk; False if something is after so long."""
        return await self.spool.wait_empty(seconds)

    async def settle(self, seconds: float) -> bool:
        """Wait until everything is published that lies in this spool, or that others left; False if not after so long.

        For a producer that must not speak before what its predecessor left has been said. What living processes keep
        in folders of their own is their affair.
        """
        until = asyncio.get_running_loop().time() + seconds
        while self.spool.waiting or await asyncio.to_thread(_left_behind, self.spool.root):
            self.start()
            if asyncio.get_running_loop().time() >= until:
                return False
            await asyncio.sleep(SETTLE_POLL_S)
        return True

    async def close(self) -> None:
        """Stop draining, and leave what is not drained to the next publisher or bridge."""
        if self._draining is not None:
            await end_tasks([self._draining])
            self._draining = None
        await self.spool.close()

    async def _may_send(self, subject: str) -> bool:
        """Say whether nothing of the subject is on disk; when little is and NATS answers, wait for that.

        Otherwise a producer that is quicker than a turn of the drain would go through the disk for ever.
        """
        if not self.spool.holds(subject):
            return True
        if self.breaker.state != "closed" or self.spool.waiting > HANDOVER or not self._nc.is_connected:
            return False
        return await self.spool.wait_free(subject, HANDOVER_S)

    async def _drain_one(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> PubAck:
        with self.breaker.attempt():
            return await self._publisher.publish_message(subject, payload, headers)


@asynccontextmanager
async def spooling(
    bus: BusSession, settings: Settings, name: str, breakers: Breakers | None = None
) -> AsyncIterator[SpoolingPublisher]:
    """Open a spooling publisher that adopts and drains from its start on, and close it again.

    A bridge opens one only to drain what dead processes left. See SpoolingPublisher for `breakers`.
    """
    publisher = SpoolingPublisher(bus, settings, name, breakers=breakers)
    publisher.start()
    try:
        yield publisher
    finally:
        await publisher.close()


def _left_behind(root: Path) -> bool:
    try:
        return any(left_behind(each) for each in spool_folders(root))
    except SpoolError as error:
        log.debug("spool_not_read", root=str(root), error=str(error))
        return True  # perhaps


def _say_why(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("spool_drain_ended", error=str(error), exc_info=error)

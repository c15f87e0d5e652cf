"""The way out: micro-batches and heartbeats of each symbol, in their order, to the bus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol, runtime_checkable

import structlog

from market_pipeline.bus.envelope import now_ms
from market_pipeline.bus.lease import Lease
from market_pipeline.bus.tick_envelope import EncodedTicks
from market_pipeline.errors import BusUnreachable, SpoolError, StreamFull
from market_pipeline.live.collector.batches import tick_batch
from market_pipeline.live.collector.hours import MarketHours
from market_pipeline.live.collector.intake import Intake
from market_pipeline.live.collector.lanes import Lane, Session
from market_pipeline.settings import StreamSettings
from market_pipeline.vendors.polygon.stream import StreamTick

log = structlog.get_logger(__name__)

# A closed market is quiet for days: a sign of life now and then is enough. The last minute is still proven.
CLOSED_HEARTBEAT_S = 30.0
AFTER_CLOSE_MS = 120_000
AGAIN_S = 0.25


class TickOutlet(Protocol):
    """Take batches: the bus, or the bus behind a spool."""

    def publish(self, batch: EncodedTicks) -> Awaitable[object]:
        """Return once the batch is kept.

        Raises:
            BusUnreachable, StreamFull, SpoolError: it is not; it will be brought again.
        """
        ...


@runtime_checkable
class SpoolingOutlet(TickOutlet, Protocol):
    """Take batches for later, too, while nobody can say who holds the lease."""

    def spool(self, batch: EncodedTicks) -> Awaitable[object]:
        """Return once the batch is on disk, without trying to publish it.

        Raises:
            SpoolError: it is not kept; it will be brought again.
        """
        ...


class Lanes:
    """Publish what the intake keeps.

    A symbol has one publication on its way at a time, so that its batches lie in the stream in their order; while one
    is on its way the next one grows, up to `batch_ticks`.
    """

    def __init__(
        self,
        intake: Intake,
        outlet: TickOutlet,
        lease: Lease,
        settings: StreamSettings,
        hours: Callable[[str], MarketHours],
        collector_id: str,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._clock = clock
        self._intake = intake
        self._outlet = outlet
        self._lease = lease
        self._settings = settings
        self._hours = hours
        self._collector_id = collector_id
        self._said = False
        self.batches = self.ticks = self.heartbeats = 0

    async def run(self, lane: Lane) -> None:
        """Publish one lane until cancelled."""
        settings = self._settings
        hours = self._hours(lane.calendar)
        while True:
            if not lane.pending:
                pause = settings.heartbeat_s
                if not hours.is_open(self._clock(), after_ms=AFTER_CLOSE_MS):
                    pause = max(pause, CLOSED_HEARTBEAT_S)
                if await _waited(lane.arrived, lane.sent_at + pause - time.monotonic()):
                    continue
                session = self._intake.quiet_session(lane)
                lane.sent_at = time.monotonic()
                if session is not None:
                    await self._publish(lane, session, [])
                    self.heartbeats += 1
                continue
            if not lane.full.is_set():
                await _waited(lane.full, settings.batch_ms / 1000)
            session, ticks = self._intake.take(lane)
            await self._publish(lane, session, ticks)
            self._intake.done(len(ticks))
            self.batches += 1
            self.ticks += len(ticks)

    async def drained(self, seconds: float) -> bool:
        """Wait until everything is published; False if it is not after so long."""
        return await _waited(self._intake.empty, seconds)

    def waits_s(self) -> dict[str, float]:
        """Return the seconds that ticks wait without progress, by symbol; those first that wait the longest."""
        now = time.monotonic()
        waits = {
            lane.symbol: now - lane.waits_since for lane in self._intake.lanes.values() if lane.waits_since is not None
        }
        return dict(sorted(waits.items(), key=lambda item: -item[1]))

    async def _publish(self, lane: Lane, session: Session, ticks: list[StreamTick]) -> None:
        """Publish, with the lease held, until it is kept: what cannot be waits in memory, bounded by the intake.

        While NATS is away the lease is neither held nor lost. Then batches go to disk, where there is a spool, under
        the epoch of the last term, and are published when NATS is back: if somebody else got the lease meanwhile, its
        epoch is higher, its first batch says since when ticks may be lost, and consumers drop ours.
        """
        batch = tick_batch(
            lane, session, ticks, collector_id=self._collector_id, epoch=self._lease.epoch, now_ms=self._clock()
        )
        while True:
            to_disk = isinstance(self._outlet, SpoolingOutlet) and not self._lease.lost.is_set()
            if not to_disk:
                await self._lease.wait_held()
            if batch.headers.epoch != self._lease.epoch:
                batch = replace(batch, headers=replace(batch.headers, epoch=self._lease.epoch))
            try:
                if self._lease.held or not isinstance(self._outlet, SpoolingOutlet):
                    await self._outlet.publish(batch)
                else:
                    await self._outlet.spool(batch)
                break
            except (BusUnreachable, StreamFull, SpoolError) as error:
                if not self._said:
                    log.warning("ticks_not_published", waiting=self._intake.size, error=str(error))
                self._said = True
                await asyncio.sleep(AGAIN_S)
        if self._said:
            self._said = False
            log.info("ticks_published_again", waiting=self._intake.size)
        lane.sent_at = time.monotonic()
        lane.waits_since = lane.sent_at if lane.pending else None


async def _waited(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; False if it does not come within so long."""
    if event.is_set():
        return True
    if seconds > 0:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
    return event.is_set()

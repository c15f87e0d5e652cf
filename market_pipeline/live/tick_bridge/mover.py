"""One term of the tick bridge: from TICKS into the tick store, in order, for as long as the lease is held.

Three groups are in memory at most: one is stored, one is decoded, one is fetched. While PostgreSQL is away they are
kept alive and tried again, and nothing more is fetched: the rest stays in the stream. When the breaker opens the term
ends, and the lease with it, so that a bridge that stands by may try; what was held comes again in the next term.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from market_pipeline.breaker import Breaker
from market_pipeline.bus.checkpoint import Checkpoints
from market_pipeline.bus.consumer import KEEP_ALIVE_S, BatchConsumer, Delivery
from market_pipeline.bus.dead_letters import Reason
from market_pipeline.bus.envelope import now_ms
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.tick_reader import ticks_span
from market_pipeline.errors import BusError, StoreQueryError, StreamMissing
from market_pipeline.live.burial import NOT_TAKEN, give_back_unburied
from market_pipeline.live.tick_bridge.group import Group, Unstorable, decode_group, one_each, parted
from market_pipeline.live.tick_bridge.latest_writer import LatestWriter
from market_pipeline.live.tick_bridge.meter import Counts, Meter
from market_pipeline.live.tick_bridge.patient_store import PatientStore, TermEnded
from market_pipeline.live.tick_bridge.place import Place, resume
from market_pipeline.live.tick_bridge.source import OrderedSource
from market_pipeline.market.timeframes import MILLISECOND
from market_pipeline.stores.ticks import BatchResult, Outcome, TickStore
from market_pipeline.stores.ticks.losses import TickLoss
from market_pipeline.tasks import end_tasks

log = structlog.get_logger(__name__)


class TickMover:
    """Move ticks until it is told to end."""

    def __init__(
        self,
        bus: BusSession,
        consumer: BatchConsumer,
        store: TickStore,
        counts: Counts,
        meter: Meter,
        latest: LatestWriter,
        breaker: Breaker,
        *,
        name: str,
        held: Callable[[], bool],
        ended: asyncio.Event,
        gather_s: float,
    ) -> None:
        """Prepare; `name` is the place's, `held` says whether we may still write it; `ended` ends the term."""
        self._bus, self._consumer, self._store = bus, consumer, store
        self._patient = PatientStore(store, breaker, counts, ended)
        self._counts, self._meter, self._latest = counts, meter, latest
        self._name, self._may_save = name, held
        self._ended, self._gather_s = ended, gather_s
        self._checkpoints = Checkpoints(bus)
        self._queue: asyncio.Queue[Group] = asyncio.Queue(maxsize=1)
        self._held: list[Sequence[Delivery]] = []
        self._place = Place("", 0)
        self._saved: Place | None = None
        self._told: dict[str, str] = {}  # symbol -> the last session whose beginning was recorded as a loss
        self.progress_at = time.monotonic()

    @property
    def store_problem(self) -> str:
        """Why the store does not take ticks, empty when it does."""
        return self._patient.problem

    @property
    def missed(self) -> int:
        """Symbols that may lack ticks up to a time that is not known yet."""
        return len(self._place.missed)

    async def begin(self) -> None:
        """Find the place, create the streams where they are gone, and have everything unacknowledged come again.

        Raises:
            BusUnreachable: JetStream does not answer.
            SettingsError: NATS has no room for the streams.
            TermEnded: before the store answered.
            StoreAuthError, StoreQueryError: the store refuses to work.
        """
        try:
            span = await ticks_span(self._bus)
        except StreamMissing:
            await self._bus.ensure_streams()
            span = await ticks_span(self._bus)
        await self._consumer.start()
        floor = await self._consumer.ack_floor()
        known = await self._checkpoints.load(self._name, Place)
        self._place, gone = resume(known, span, floor)
        self._saved = known
        await self._patient.patiently(self._store.start)
        self._patient.began()
        if gone is not None:
            await self._note_hole(gone)
        await self._consumer.reset()

    async def run(self) -> None:
        """Move ticks until told to end, then store what was fetched, unless the store is away.

        Raises:
            StreamReplaced, BusError, StreamMissing: a new term must begin.
            StoreAuthError: the store refuses the user.
            TermEnded: while the store was away.
            StoreAway: its breaker has opened.
        """
        source = OrderedSource(
            self._bus, self._consumer, self._place.stream, self._place.seq + 1, self._hole, gather_s=self._gather_s
        )
        feeding = asyncio.create_task(self._feed(source), name="ticks feed")
        storing = asyncio.create_task(self._store_for_ever(), name="ticks store")
        keeping = asyncio.create_task(self._keep_alive(), name="ticks keep alive")
        tasks: list[asyncio.Task[None]] = [feeding, storing, keeping]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # what is in memory is stored first, whatever ended the feeding, for as long as the store answers
            tasks.append(asyncio.create_task(self._queue.join()))
            await asyncio.wait((tasks[-1], storing, keeping), return_when=asyncio.FIRST_COMPLETED)
            for task in (feeding, storing, keeping):
                if task.done():
                    task.result()
        finally:
            await end_tasks(tasks)

    async def _feed(self, source: OrderedSource) -> None:
        while not self._ended.is_set():
            async for deliveries in source.fetch():
                self._held.append(deliveries)
                group = await asyncio.to_thread(decode_group, deliveries)
                await self._queue.put(group)

    async def _store_for_ever(self) -> None:
        while True:
            group = await self._queue.get()
            try:
                await self._settle(group)
            except TermEnded:
                return
            except BusError as error:
                # not acknowledged: they come again, and are duplicates
                log.warning("ticks_not_acknowledged", messages=len(group.deliveries), error=str(error))
            finally:
                self._held.remove(group.deliveries)
                self._queue.task_done()
            self.progress_at = time.monotonic()

    async def _settle(self, group: Group) -> None:
        """Store a group, bury what cannot be stored, keep the place, acknowledge: in this order."""
        unrecorded: list[tuple[TickLoss, str]] = []
        place, told = self._place, group.told()
        if place.missed and (known := {headers.symbol for _, headers in told} & place.missed.keys()):
            losses = place.losses(headers for _, headers in told)
            unrecorded = await self._patient.record(losses)
            self._counts.expired_losses += len(losses) - len(unrecorded)
            place = place.without(known)
        results, given_up = await self._patient.commit(group.batches) if group.batches else ([], set())
        committed = now_ms()
        numbered, missing = place.numbered(told)
        begun = parted(headers for _, headers in told)
        begun = [loss for loss in begun if self._told.get(loss.symbol) != loss.session_id]
        unrecorded += await self._note_losses(group, results, begun, missing)
        bad = [
            *group.unstorable,
            *(
                Unstorable(delivery, Reason.INSERT_FAILED if at in given_up else Reason.MALFORMED_ROW, result.detail)
                for at, ((delivery, _), result) in enumerate(zip(group.sources, results, strict=True))
                if result.outcome is Outcome.REJECTED
            ),
            *(Unstorable(group.bringer(loss), Reason.INSERT_FAILED, why) for loss, why in unrecorded),
        ]
        self._count(group, results, committed)
        # a batch may be refused, and what it says of losses too: the first reason counts
        buried = {each.delivery.stream_seq: await self._bury(each) for each in one_each(bad)}
        if all(buried.values()):
            self._told |= {loss.symbol: loss.session_id for loss in begun}
        self._place = numbered.moved(group.last_seq)
        await self._save()
        await self._consumer.ack(each for each in group.deliveries if each.stream_seq not in buried)

    async def _note_losses(
        self, group: Group, results: list[BatchResult], begun: list[TickLoss], missing: list[TickLoss]
    ) -> list[tuple[TickLoss, str]]:
        """Record the time that the collector itself calls lost, and that of batches which are missing or refused.

        The minutes are repaired from the vendor's bars; the ticks are not, so their absence stays on record here.
        Returns the losses that the store refuses, and why.
        """
        for loss in missing:
            log.error(
                "tick_batches_missing", symbol=loss.symbol, start=loss.start.isoformat(), end=loss.end.isoformat()
            )
        again = parted(headers for headers in group.headers if headers.replayed)
        unrecorded = await self._patient.record(begun + missing + again)
        rejected = [
            TickLoss(headers.symbol, headers.first_ts, headers.last_ts + MILLISECOND, "rejected", headers.session_id)
            for (_, headers), result in zip(group.sources, results, strict=True)
            if result.outcome is Outcome.REJECTED and headers.first_ts is not None and headers.last_ts is not None
        ]
        for loss in rejected:
            try:
                await self._patient.patiently(lambda loss=loss: self._store.record_losses([loss]))  # type: ignore[misc]
            except StoreQueryError as error:  # what the store refuses of a batch, its symbol, it refuses here too
                log.error("rejected_ticks_not_recorded_as_lost", symbol=loss.symbol[:40], error=str(error))
        return unrecorded

    def _count(self, group: Group, results: list[BatchResult], committed: int) -> None:
        counts = self._counts
        stored = [
            (batch, headers)
            for batch, (_, headers), result in zip(group.batches, group.sources, results, strict=True)
            if result.outcome is Outcome.STORED
        ]
        ticks = sum(batch.rows for batch, _ in stored)
        counts.ticks += ticks
        counts.batches += len(stored)
        counts.heartbeats += sum(each.heartbeat for each in group.headers)
        for result in results:
            counts.duplicates += result.outcome is Outcome.DUPLICATE
            counts.fenced += result.outcome is Outcome.FENCED
        fresh = [(batch, headers) for batch, headers in stored if not headers.replayed]
        received = [headers.stages["received"] for _, headers in fresh if "received" in headers.stages]
        self._meter.stored(ticks, [committed - each for each in received])
        self._latest.take(batch for batch, _ in fresh)

    async def _bury(self, bad: Unstorable) -> bool:
        """Send a message to dead letters; it leaves the consumer only after that was acknowledged.

        False where they do not take it: it alone is given back, until a person made room.
        """
        try:
            await self._bus.bury(bad.delivery, bad.reason, bad.error)
        except NOT_TAKEN as error:
            await give_back_unburied(self._consumer, bad.delivery, error)
            return False
        await self._consumer.term(bad.delivery)
        self._counts.dead_letters += 1
        log.warning("dead_letter", reason=str(bad.reason), sequence=bad.delivery.stream_seq, error=bad.error)
        return True

    async def _hole(self, seq: int) -> None:
        """Note that the messages up to `seq` are gone, once everything before them is stored."""
        await self._queue.join()
        await self._note_hole(seq)

    async def _note_hole(self, seq: int) -> None:
        stored_until = await self._patient.patiently(self._store.last_times)
        if stored_until:
            self._counts.holes += 1
            # from 1 to 0 or so: the stream is not the one of before, and nobody knows what that one held
            log.error(
                "ticks_left_the_stream_unstored", from_seq=self._place.seq + 1, to_seq=seq, symbols=len(stored_until)
            )
        self._place = self._place.with_hole(seq, stored_until)
        await self._save()

    async def _save(self) -> None:
        if self._place != self._saved and self._may_save():
            try:
                await self._checkpoints.save(self._name, self._place)
            except BusError:
                self._checkpoints = Checkpoints(self._bus)  # the bucket may be gone
                raise
            self._saved = self._place

    async def _keep_alive(self) -> None:
        """Start the `ack_wait` of everything in memory again, every few seconds."""
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            try:
                for deliveries in tuple(self._held):
                    await self._consumer.in_progress(deliveries)
            except BusError as error:
                log.warning("ticks_not_kept_alive", error=str(error))

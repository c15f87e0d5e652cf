"""The aggregator as a service: under its lease, from its checkpoint, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence

import structlog

from market_pipeline.bus.checkpoint import Checkpoints
from market_pipeline.bus.envelope import EncodedBatch, now_ms
from market_pipeline.bus.lease import Lease
from market_pipeline.bus.losses import LossBucket, LossSink
from market_pipeline.bus.publisher import Publisher
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.subjects import market_subject
from market_pipeline.bus.tick_reader import TickMessage, TickReader, ticks_span
from market_pipeline.errors import BusUnreachable, SettingsError, StreamFull
from market_pipeline.live.aggregator.book import Book, BookState
from market_pipeline.live.aggregator.health import AggregatorHealth, State, problems_of
from market_pipeline.live.aggregator.warm_up import warm_up
from market_pipeline.live.loss_recorder import LossRecorder
from market_pipeline.live.service import UNHEALTHY_AFTER_S
from market_pipeline.live.terms import standby_problems, work_in_terms, work_on
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.live_facts import LiveCounts, LiveRules
from market_pipeline.tasks import unless

log = structlog.get_logger(__name__)

FETCH = 256
WAIT_S = 0.2
FLUSH_S = 0.05
# Messages come one by one, hundreds a second: a moment's rest between two fetches makes them few and larger.
REST_S = 0.015
# So few messages take less time than handing them to a thread.
INLINE = 32
CHECKPOINT_S = 1.0
# Without a batch for so long a symbol's collector is away: its bars come out as they are, not proven.
SILENT_MS = 15_000
AGAIN_S = 0.25
RETRY_FOR_S = 2.0

OnPublished = Callable[[Sequence[EncodedBatch]], None]


class Aggregator:
    """Make the live bars of a static set of symbols from TICKS and publish them to LIVE.

    One aggregator at a time works for a `name`: a second one stands by until the first gives up its lease or loses it,
    and goes on from its checkpoint. The checkpoint is written after the bars that it covers are published, so what was
    published shortly before a crash is published again, with the same values.
    """

    def __init__(
        self,
        bus: BusSession,
        instruments: Sequence[Instrument],
        *,
        name: str = "default",
        rules: LiveRules | None = None,
        run_id: str = "",
        losses: LossSink | None = None,
        on_published: OnPublished | None = None,
        lease_ttl_s: float = 10.0,
        silent_ms: int = SILENT_MS,
        clock: Callable[[], int] = now_ms,
        unhealthy_after_s: float = UNHEALTHY_AFTER_S,
    ) -> None:
        """Prepare; nothing is asked of the bus yet, whose streams must exist.

        Args:
            name: of the set of symbols, for lease and checkpoint.
            run_id: in the headers of every batch, for the ledger.
            losses: where minutes to repair are kept; default: the bucket `losses`.
            on_published: told of every batch of bars once JetStream has it; must not wait.
            silent_ms: without a batch for so long, the bars under way are published unproven.
            clock: the time (epoch ms) on the vendor's clock; another than the wall's only where a replay has one.
            unhealthy_after_s: ticks or bars that wait for so long without progress are a problem.

        Raises:
            SettingsError: there are no instruments.
        """
        if not instruments:
            raise SettingsError("an aggregator needs at least one instrument")
        self._bus, self._instruments, self._name = bus, tuple(instruments), name
        self._rules = rules or LiveRules()
        self._run_id = run_id
        self._on_published = on_published
        self._silent_ms, self._unhealthy_after_s = silent_ms, unhealthy_after_s
        self._clock = clock
        self._recorder = LossRecorder(losses or LossBucket(bus))
        self._checkpoints = Checkpoints(bus)
        self._publisher = Publisher(
            bus.nc, bus.js, ack_timeout_s=RETRY_FOR_S, retry_for_s=RETRY_FOR_S, wait_full_s=RETRY_FOR_S
        )
        holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._lease = Lease(bus, f"aggregator.{name}", holder, ttl_s=lease_ttl_s, work=work_on(self._instruments))
        self._state: State = "stopped"
        self._book: Book | None = None
        self._reader: TickReader | None = None
        self._unpublished = 0
        self._said = False
        self._progress_at = self._checkpoint_at = time.monotonic()
        self._saved: BookState | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Aggregate, or stand by, until `stop` is set; then publish what is due and keep the checkpoint.

        Raises:
            StreamMissing: TICKS does not exist.
            BusUnreachable: the connection to NATS is closed for good.
        """
        await asyncio.to_thread(warm_up, self._instruments[0])
        await work_in_terms(stop, self._lease, self._recorder, self._term, self._enter)

    def _enter(self, state: State) -> None:
        self._state = state

    def health(self) -> AggregatorHealth:
        """Return the state of now."""
        book, now = self._book, time.monotonic()
        counts = book.counts() if book is not None else LiveCounts()
        pending = self._reader.pending if self._reader is not None else 0
        waits = self._state in ("rebuilding", "running") and (pending or self._unpublished)
        stuck_s = now - self._progress_at if waits else 0.0
        checkpoint_age_s = now - self._checkpoint_at if self._state == "running" else None
        return AggregatorHealth(
            state=self._state,
            problems=(
                *problems_of(
                    self._state,
                    bus_connected=bool(self._bus.nc.is_connected),
                    lease_held=self._lease.held,
                    pending=pending,
                    unpublished=self._unpublished,
                    stuck_s=stuck_s,
                    checkpoint_age_s=checkpoint_age_s,
                    losses_waiting=self._recorder.waiting,
                    unhealthy_after_s=self._unhealthy_after_s,
                ),
                *standby_problems(self._state, self._name, self._lease),
            ),
            name=self._name,
            symbols=len(self._instruments),
            epoch=self._lease.epoch,
            pending=pending,
            unpublished=self._unpublished,
            stuck_s=round(stuck_s, 3),
            behind_s=book.behind_s(self._clock()) if book is not None else None,
            checkpoint_age_s=None if checkpoint_age_s is None else round(checkpoint_age_s, 3),
            batches=counts.batches,
            ticks=counts.ticks,
            late=counts.late,
            late_dropped=counts.late_dropped,
            ahead=counts.ahead,
            malformed=counts.malformed,
            crossed=counts.crossed,
            superseded=counts.superseded,
            duplicates=counts.duplicates,
            fenced=counts.fenced,
            unreadable=book.unreadable if book is not None else 0,
            bars=counts.bars,
            revisions=counts.revisions,
            losses=dict(self._recorder.recorded),
            losses_waiting=self._recorder.waiting,
        )

    async def _term(self, stop: asyncio.Event) -> None:
        """Aggregate while the lease is held."""
        self._state = "rebuilding"
        self._progress_at = time.monotonic()
        book = await self._rebuild(stop)
        if book is None:
            return
        self._book = book
        reader = self._reader = TickReader(self._bus, [each.key for each in self._instruments], book.next_seq)
        log.info("aggregator_started", name=self._name, epoch=self._lease.epoch, next_seq=book.next_seq)
        messages: list[TickMessage] = []
        try:
            flushed_at = 0.0
            while not stop.is_set() and not self._lease.lost.is_set():
                if 0 < len(messages) < FETCH:
                    await asyncio.sleep(REST_S)
                messages = await reader.fetch(FETCH, WAIT_S)
                if messages:
                    if len(messages) <= INLINE:
                        book.take(messages, self._clock())
                    else:
                        await asyncio.to_thread(book.take, messages, self._clock())
                if messages or reader.at_end:
                    self._progress_at = time.monotonic()
                # One symbol may be silent while others are not: only with everything taken is that known of it. After
                # an outage the collector's spool has a while to drain: it was not silent, nobody could hear.
                if reader.at_end and time.monotonic() - reader.away_at >= self._silent_ms / 1000:
                    book.close_silent(self._clock(), self._silent_ms)
                if not self._rebuilt(book, reader) or time.monotonic() - flushed_at < FLUSH_S:
                    continue
                flushed_at = time.monotonic()
                if not await self._flush(book, stop):
                    return
            if self._rebuilt(book, reader) and await self._flush(book, stop):
                await self._keep(book)
        finally:
            self._reader = None
            await reader.close()

    async def _rebuild(self, stop: asyncio.Event) -> Book | None:
        """Load the checkpoint; None when told to stop, or without the lease, before NATS answers."""
        said = False
        while not stop.is_set() and not self._lease.lost.is_set():
            try:
                known = await self._checkpoints.load(f"aggregator.{self._name}", BookState)
                span = await ticks_span(self._bus)
            except BusUnreachable as error:
                if self._bus.nc.is_closed:
                    raise
                if not said:
                    log.warning("aggregator_waits_for_bus", error=str(error))
                said = True
                await asyncio.sleep(AGAIN_S)
                continue
            self._saved = known
            self._checkpoint_at = time.monotonic()
            return Book(self._instruments, self._rules, known, span, self._clock())
        return None

    def _rebuilt(self, book: Book, reader: TickReader) -> bool:
        """Say whether it is where the checkpoint was: before that, bars are not whole yet or were published."""
        if self._state == "rebuilding" and (book.next_seq > book.hold_until or reader.at_end):
            self._state = "running"
            self._checkpoint_at = time.monotonic()
            log.info("aggregator_rebuilt", name=self._name, next_seq=book.next_seq, pending=reader.pending)
        return self._state == "running"

    async def _flush(self, book: Book, stop: asyncio.Event) -> bool:
        """Publish what is due, then keep the checkpoint: in this order. False when the term is over before that."""
        batches = await asyncio.to_thread(book.due, self._clock(), self._run_id)
        if batches and not await self._publish(batches, stop):
            return False
        for loss in book.losses():
            self._recorder.add(loss)
        if time.monotonic() - self._checkpoint_at >= CHECKPOINT_S:
            await self._keep(book)
        return True

    async def _publish(self, batches: Sequence[EncodedBatch], stop: asyncio.Event) -> bool:
        """Publish batches until each is kept; False when that was not possible before the end of the term.

        They wait here while NATS is away, and need no spool: their ticks are in NATS too, so nothing new comes
        meanwhile, and whoever goes on from the checkpoint makes them again.
        """
        waiting = list(batches)
        while waiting:
            self._unpublished = len(waiting)
            if not self._lease.held and not await unless(self._lease.lost, self._lease.wait_held()):
                return False
            answers = await asyncio.gather(*(self._send(each) for each in waiting))
            kept = [batch for batch, ok in zip(waiting, answers, strict=True) if ok]
            waiting = [batch for batch, ok in zip(waiting, answers, strict=True) if not ok]
            if kept:
                self._progress_at = time.monotonic()
                if self._on_published is not None:
                    self._on_published(kept)
            if waiting:
                if stop.is_set():
                    log.warning("bars_left_behind", batches=len(waiting))  # the next one makes them again
                    return False
                await asyncio.sleep(AGAIN_S)
        self._unpublished = 0
        if self._said:
            self._said = False
            log.info("bars_published_again")
        return True

    async def _send(self, batch: EncodedBatch) -> bool:
        try:
            await self._publisher.publish(batch, market_subject(batch.headers.symbol, batch.headers.timeframe))
        except (BusUnreachable, StreamFull) as error:
            if self._bus.nc.is_closed:
                raise
            if not self._said:
                log.warning("bars_not_published", error=str(error))
            self._said = True
            return False
        return True

    async def _keep(self, book: Book) -> None:
        """Keep the checkpoint of a book whose bars are all published."""
        state = book.state()
        if state != self._saved:
            try:
                if not self._lease.held:
                    return
                await self._checkpoints.save(f"aggregator.{self._name}", state)
            except BusUnreachable:
                return  # health tells how old it is
            self._saved = state
        self._checkpoint_at = time.monotonic()

"""What a run has published and not yet seen stored: bounded, resolved by the ledger, verified by value."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from market_pipeline.bus.envelope import BatchHeaders, EncodedBatch, encode_batches
from market_pipeline.bus.receipts import Receipts
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.spooling import SpoolingPublisher
from market_pipeline.bus.subjects import history_subject, market_subject
from market_pipeline.bus.throttle import HISTORY_SERVICE, ThrottleGate
from market_pipeline.errors import HistoryError, StillSpooled, StoreError, Transient, VerificationFailed
from market_pipeline.history.gather import Gather
from market_pipeline.history.reports import SeriesCounts
from market_pipeline.live.claims import waves
from market_pipeline.market.restatement import unproven
from market_pipeline.stores.bars import BarStore, BatchRange, SeriesDigest
from market_pipeline.stores.ledgers import IngestLedger, IngestRow
from market_pipeline.tasks import end_tasks

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 0.5
PUBLISH_AGAIN = 3
"""How often a batch whose rows are not what the store holds is published again before the run fails."""


class Tracker:
    """Publish batches and wait for them: at most `max_unresolved` are on the road at any time.

    live: to LIVE, where no backfill stands before them and the hub's throttle does not hold; else to HISTORY.
    """

    def __init__(
        self,
        bus: BusSession,
        ledger: IngestLedger,
        bars: BarStore,
        publisher: SpoolingPublisher,
        *,
        run_id: str,
        max_unresolved: int,
        drain_timeout_s: float,
        spool_wait_s: float,
        live: bool = False,
    ) -> None:
        self._live, self._subject_of = live, market_subject if live else history_subject
        self._bus, self._ledger, self._bars = bus, ledger, bars
        self._publisher = publisher
        self._spool_wait_s, self._spool_until = spool_wait_s, 0.0
        self._digests: Gather[BatchRange, SeriesDigest] = Gather(self._read_digests)
        self._run_id, self._drain_timeout = run_id, drain_timeout_s
        self._slots = asyncio.Semaphore(max_unresolved)
        self._waiting: dict[int, asyncio.Future[IngestRow]] = {}
        self._last_progress = time.monotonic()
        self._failure: BaseException | None = None
        self._gate = ThrottleGate(HISTORY_SERVICE)

    @property
    def seconds_throttled(self) -> float:
        """What the publications of this run have waited for the hub's sake, together."""
        return self._gate.seconds_throttled

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Tracker]:
        """Watch the ledger while the context is open; a receipt only makes the next look come sooner."""
        async with AsyncExitStack() as stack:
            heard = await stack.enter_async_context(self._bus.receipts(self._run_id))
            if not self._live:
                self._gate = await stack.enter_async_context(self._bus.throttle(HISTORY_SERVICE))
            watcher = asyncio.create_task(self._watch(heard))
            try:
                yield self
            finally:
                await end_tasks((watcher,))
                if self._gate.batches_throttled:
                    log.info(
                        "run_was_throttled",
                        run_id=self._run_id,
                        batches=self._gate.batches_throttled,
                        seconds=round(self.seconds_throttled, 1),
                    )

    async def publish(self, batch: EncodedBatch) -> asyncio.Future[IngestRow]:
        """Publish one batch when there is room; the future resolves with its line in the ledger.

        While NATS is away what is on its way goes to the spool, nothing new follows it, and all wait for it to drain.

        Raises:
            StillSpooled: it did not drain in time: the batch is on disk, and is published later by whoever comes.
            StreamFull, SpoolError: the batch is neither on the bus nor on disk.
            HistoryError: nothing was stored for the drain time-out.
        """
        await self._slots.acquire()
        await self._passes()
        if self._failure is not None:
            self._slots.release()
            raise self._failure
        future: asyncio.Future[IngestRow] = asyncio.get_running_loop().create_future()
        batch_id = batch.headers.batch_id
        if not self._waiting:
            self._last_progress = time.monotonic()
        self._waiting[batch_id] = future
        subject = self._subject_of(batch.headers.symbol, batch.headers.timeframe)
        try:
            await self._spool_drained(subject)
            if (await self._publisher.publish(batch, subject)).spooled:
                await self._spool_drained(subject)
        except BaseException:
            self._waiting.pop(batch_id, None)
            self._slots.release()
            raise
        return future

    async def _passes(self) -> None:
        """Wait for the hub's throttle, holding a slot."""
        try:
            await self._gate.pass_()
        except BaseException:
            self._slots.release()
            raise

    async def settle(self, batches: Sequence[EncodedBatch], *, counts: SeriesCounts) -> None:
        """Publish batches, wait until each is stored, and verify their values; add what happened to `counts`.

        Raises:
            VerificationFailed: the store refused a batch, or does not hold its rows though it said so.
        """
        await self.verify(await self.store(batches, counts=counts), counts=counts)

    async def store(self, batches: Sequence[EncodedBatch], *, counts: SeriesCounts) -> list[EncodedBatch]:
        """Publish batches and wait until each is stored; return those of which rows were written, still to verify.

        Raises:
            VerificationFailed: the store refused a batch.
        """
        futures = [await self.publish(batch) for batch in batches]
        rows = list(await asyncio.gather(*futures))
        for row in rows:
            if row.outcome != "stored":
                raise VerificationFailed(
                    f"{row.symbol} {row.timeframe}: batch {row.batch_id} was rejected ({row.error}); "
                    "its rows are in the dead letters"
                )
            counts.add(_counts(row))
        # A batch of which nothing was written was compared with the store just now: that was its verification.
        return [batch for batch, row in zip(batches, rows, strict=True) if row.unchanged_rows < row.rows]

    async def digest(self, where: BatchRange) -> SeriesDigest:
        """Return count and digest of what the range's own source has stored now."""
        return await self._digests.ask(where)

    async def _read_digests(self, ranges: list[BatchRange]) -> list[SeriesDigest]:
        """Read many ranges at once. Some may overlap: tombstones lie within the range of the bars beside them."""
        found: dict[int, SeriesDigest] = {}
        for wave in waves(ranges):
            digests = await asyncio.to_thread(self._bars.series_digests, [ranges[i] for i in wave])
            found.update(zip(wave, digests, strict=True))
        return [found[i] for i in range(len(ranges))]

    async def verify(self, batches: Sequence[EncodedBatch], *, counts: SeriesCounts) -> None:
        """Compare what the store holds with what was published; publish again what is neither equal nor beaten.

        Two writers that compare before they write can lose the newer row: only this look at the values tells.

        Raises:
            VerificationFailed: the rows still differ after PUBLISH_AGAIN attempts.
        """
        wrong = list(batches)
        for attempt in range(PUBLISH_AGAIN + 1):
            wrong = await self._unproven(wrong)
            if not wrong:
                return
            if attempt == PUBLISH_AGAIN:
                break
            again: list[EncodedBatch] = []
            for batch in wrong:
                # A new batch, since the ledger has already said what became of this one.
                again += encode_batches(
                    batch.frame_slice, correlation_id=batch.headers.correlation_id, run_id=self._run_id
                )
            counts.republished += len(again)
            await asyncio.gather(*[await self.publish(batch) for batch in again])
            wrong = again
        headers = wrong[0].headers
        raise VerificationFailed(
            f"{headers.symbol} {headers.timeframe}: {len(wrong)} batch(es) from {headers.start_ts} are not in the "
            f"store as published, after {PUBLISH_AGAIN} more attempts"
        )

    async def _unproven(self, batches: list[EncodedBatch]) -> list[EncodedBatch]:
        """Return the batches of which some row is not proven by the store."""
        if not batches:
            return []
        ranges = [_range(b.headers) for b in batches]
        stored = await asyncio.gather(*(self.digest(each) for each in ranges))
        wrong: list[EncodedBatch] = []
        for index, (batch, where) in enumerate(zip(batches, ranges, strict=True)):
            if stored[index] == (batch.headers.rows, batch.headers.digest):
                continue
            kept = await asyncio.to_thread(
                self._bars.stored_rows,
                where.symbol,
                where.timeframe,
                where.source,
                where.start_ts,
                where.end_ts,
                with_tombstones=True,
            )
            if unproven(batch.frame_slice, kept).height:
                wrong.append(batch)
        return wrong

    async def _watch(self, heard: Receipts) -> None:
        """Look the waiting batches up in the ledger until the run ends."""
        try:
            while True:
                await heard.wait(LOOK_EVERY_S)
                if self._waiting:
                    await self._look()
                    self._check_progress()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)

    async def _look(self) -> None:
        try:
            found = await asyncio.to_thread(self._ledger.outcomes, list(self._waiting))
        except StoreError as error:
            if isinstance(error, Transient):
                return  # the bridge waits for the same store; the drain time-out bounds this
            raise
        for batch_id, row in found.items():
            future = self._waiting.pop(batch_id, None)
            if future is None:
                continue
            self._slots.release()
            self._last_progress = time.monotonic()
            if not future.done():
                future.set_result(row)

    async def _spool_drained(self, subject: str) -> None:
        """Wait until nothing of this run is in the spool; all share one bound, from when the first one waited."""
        if not self._publisher.waiting:
            self._spool_until = 0.0
            return
        self._spool_until = self._spool_until or time.monotonic() + self._spool_wait_s
        if not await self._publisher.wait_drained(max(0.0, self._spool_until - time.monotonic())):
            waiting = self._publisher.waiting
            raise StillSpooled(
                f"{subject}: NATS was away for {self._spool_wait_s:g} s; {waiting} batches of this run wait in the "
                f"spool {self._publisher.spool.writer.folder}, and are published by the next run or bridge: start "
                "NATS, then run this again",
                batches=waiting,
            )
        self._spool_until = 0.0

    def _check_progress(self) -> None:
        if self._publisher.waiting:
            self._last_progress = time.monotonic()  # NATS is away: that has a bound of its own
            return
        waited = time.monotonic() - self._last_progress
        if self._waiting and waited > self._drain_timeout:
            raise HistoryError(
                f"{len(self._waiting)} published batches were not stored within {waited:.0f} s: is ClickHouse up? "
                "They stay on the bus and will be stored; run this again to verify them"
            )

    def _fail(self, error: BaseException) -> None:
        """Let everybody who waits know; later publications fail at once."""
        self._failure = error
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
            self._slots.release()
        self._waiting.clear()


def _range(headers: BatchHeaders) -> BatchRange:
    return BatchRange(headers.symbol, headers.timeframe, headers.source, headers.start_ts, headers.end_ts)


def _counts(row: IngestRow) -> SeriesCounts:
    return SeriesCounts(
        rows=row.rows,
        new=row.new_rows,
        restated=row.restated_rows,
        unchanged=row.unchanged_rows,
        withdrawn=row.withdrawn_rows,
        superseded=row.superseded_rows,
        rejected=row.rejected_rows,
        batches=1,
    )

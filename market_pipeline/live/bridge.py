"""The bridge: batches of bars from a stream into ClickHouse, the one door.

It moves bytes. A batch of a range in which its source has nothing yet is spliced into one insert with its neighbours,
undecoded; a batch whose digest equals what is stored writes nothing; only where something differs is it decoded and
compared row by row. Whatever happened is written to the ingest ledger, then acknowledged: in this order, so that a
crash between any two steps repeats work that the key and the revision make harmless.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl
import structlog

from market_pipeline.bus.consumer import BatchConsumer, Delivery
from market_pipeline.bus.dead_letters import Reason
from market_pipeline.bus.envelope import BatchHeaders, decode, now_ms
from market_pipeline.bus.session import BusSession
from market_pipeline.errors import BusError, StoreError, StoreQueryError, Transient, UnreadableBatch
from market_pipeline.live.claims import Claims, waves
from market_pipeline.market.bars import split_valid
from market_pipeline.market.restatement import compare
from market_pipeline.stores.bars import BarStore, BatchRange
from market_pipeline.stores.ledgers import IngestLedger, IngestRow

log = structlog.get_logger(__name__)

MAX_DELIVERIES = 10
"""Deliveries after which a batch that the store refuses, while it takes others, goes to dead letters."""


@dataclass
class BridgeStats:
    """Count what passed: batches, rows and groups, and what could not be stored."""

    batches: int = 0
    rows: int = 0
    inserts: int = 0
    new: int = 0
    restated: int = 0
    withdrawn: int = 0
    unchanged: int = 0
    superseded: int = 0
    rejected_rows: int = 0
    dead_letters: int = 0
    given_back: int = 0
    outages: int = 0


@dataclass
class _Outcome:
    """What one delivery comes to: rows to write, and its line in the ledger."""

    delivery: Delivery
    headers: BatchHeaders
    raw: bool = False
    frame: pl.DataFrame | None = None
    replaced: pl.DataFrame | None = None
    new: int = 0
    restated: int = 0
    withdrawn: int = 0
    unchanged: int = 0
    superseded: int = 0
    rejected: int = 0
    outcome: str = "stored"
    error: str = ""
    reason: str = ""


@dataclass
class BridgeWorker:
    """Consume one stream of bar batches until told to stop; any number of workers may share a consumer.

    Args:
        consumer: the durable consumer of HISTORY or LIVE.
        bars, ledger: the stores; their blocking calls run in threads.
        bus: for dead letters, and for receipts to the runs that wait.
        max_group_rows: rows that one insert takes at most.
        groups_in_flight: groups that are compared and inserted at once.
        gather_s: how long a group may wait for more batches; short where latency counts.
    """

    consumer: BatchConsumer
    bars: BarStore
    ledger: IngestLedger
    bus: BusSession
    max_group_rows: int = 262_144
    max_group_batches: int = 32
    groups_in_flight: int = 2
    gather_s: float = 0.3
    stats: BridgeStats = field(default_factory=BridgeStats)
    _claims: Claims = field(default_factory=Claims)

    async def run(self, stop: asyncio.Event) -> None:
        """Move batches until `stop` is set and the groups in flight are done."""
        slots = asyncio.Semaphore(self.groups_in_flight)
        running: set[asyncio.Task[None]] = set()
        try:
            while not stop.is_set():
                await slots.acquire()
                try:
                    group = await self._collect(stop)
                except BusError as error:  # the broker is away: what it holds stays there
                    log.warning("bridge_cannot_fetch", error=str(error))
                    group = []
                    await asyncio.sleep(0.5)
                if not group:
                    slots.release()
                    continue
                task = asyncio.create_task(self._handle(group))
                running.add(task)
                task.add_done_callback(running.discard)
                task.add_done_callback(lambda _: slots.release())
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()

    async def _collect(self, stop: asyncio.Event) -> list[Delivery]:
        """Return deliveries up to a group's size; after the first has come, wait `gather_s` at most for its company.

        An insert costs by its parts, not by its rows: five small groups cost four times as much as one large.
        """
        group = await self.consumer.fetch(self.max_group_batches, 0.5)
        until = time.monotonic() + self.gather_s
        while group and not stop.is_set():
            rows = sum(_rows_said(d) for d in group)
            room = self.max_group_batches - len(group)
            left = until - time.monotonic()
            if room <= 0 or rows >= self.max_group_rows or left <= 0:
                break
            group += await self.consumer.fetch(room, min(left, 0.1))
        return group

    async def _handle(self, group: list[Delivery]) -> None:
        """Store a group; when the store is away give it back and wait until it answers."""
        try:
            async with self.consumer.keep_alive(group):
                await self._store(group)
        except StoreError as error:
            if not isinstance(error, Transient):
                log.error("bridge_store_refuses", error=str(error))
            self.stats.outages += 1
            self.stats.given_back += len(group)
            log.warning("bridge_gives_back", batches=len(group), error=str(error))
            await self._give_back(group)
            await asyncio.sleep(1.0)
        except BusError as error:  # not acknowledged: the broker delivers them again, and they will be unchanged
            log.warning("bridge_cannot_acknowledge", batches=len(group), error=str(error))
        except Exception:
            log.exception("bridge_group_failed", batches=len(group))
            await self._give_back(group)
            await asyncio.sleep(1.0)

    async def _give_back(self, group: list[Delivery]) -> None:
        try:
            await self.consumer.give_back(group, delay_s=1.0)
        except BusError as error:
            log.warning("bridge_cannot_give_back", batches=len(group), error=str(error))

    async def _store(self, group: list[Delivery]) -> None:
        """Dead-letter what cannot be read, then store the rest in waves that do not overlap."""
        good: list[tuple[Delivery, BatchHeaders]] = []
        for delivery in group:
            try:
                good.append((delivery, delivery.batch_headers()))
            except UnreadableBatch as error:
                await self._bury(delivery, error.reason, str(error))
        ranges = [batch_range(headers) for _, headers in good]
        for wave in waves(ranges):
            async with self._claims.hold([ranges[i] for i in wave]):
                await self._store_wave([good[i] for i in wave], [ranges[i] for i in wave])

    async def _store_wave(self, wave: list[tuple[Delivery, BatchHeaders]], ranges: list[BatchRange]) -> None:
        stored = await asyncio.to_thread(self.bars.series_digests, ranges)
        outcomes: list[_Outcome] = []
        for (delivery, headers), (rows, digest) in zip(wave, stored, strict=True):
            if rows == 0:
                outcomes.append(_Outcome(delivery, headers, raw=True, new=headers.rows))
            elif rows == headers.rows and digest == headers.digest:
                outcomes.append(_Outcome(delivery, headers, unchanged=headers.rows))
            else:
                outcomes.append(await self._compare(delivery, headers))
        try:
            await self._insert(outcomes)
        except StoreQueryError as error:
            log.warning("bridge_insert_refused", batches=len(wave), error=str(error))
            outcomes = await self._one_by_one(outcomes)
        await self._settle(outcomes)

    async def _compare(self, delivery: Delivery, headers: BatchHeaders) -> _Outcome:
        """Decode a batch and keep the rows that change what is stored; a malformed row is dead-lettered alone."""
        where = batch_range(headers)
        try:
            frame = await asyncio.to_thread(decode, delivery.payload, headers)
        except UnreadableBatch as error:
            return _Outcome(
                delivery, headers, outcome="rejected", error=str(error), reason=error.reason, rejected=headers.rows
            )
        good, bad = split_valid(frame)
        if bad.height:
            for row in bad.iter_slices(1):
                text = row.drop("reason").write_ndjson().encode()
                await self.bus.bury(delivery, Reason.MALFORMED_ROW, str(row["reason"][0]), rows=text)
        stored = await asyncio.to_thread(
            self.bars.stored_rows,
            where.symbol,
            where.timeframe,
            where.source,
            where.start_ts,
            where.end_ts,
            with_tombstones=True,
        )
        changes = compare(good, stored)
        return _Outcome(
            delivery,
            headers,
            frame=changes.write,
            replaced=changes.replaced,
            new=changes.new,
            restated=changes.restated,
            withdrawn=changes.withdrawn,
            unchanged=changes.unchanged,
            superseded=changes.superseded,
            rejected=bad.height,
        )

    async def _insert(self, outcomes: Sequence[_Outcome]) -> None:
        """Write the spliced raw batches in one insert and the changed rows, with what they replace, in another."""
        payloads = [o.delivery.payload for o in outcomes if o.raw]
        changed = [(o.frame, o.replaced) for o in outcomes if o.frame is not None and o.frame.height]
        if payloads:
            await asyncio.to_thread(self.bars.insert_arrow_messages, payloads)
            self.stats.inserts += 1
        if changed:
            frames = [frame for frame, _ in changed]
            replaced = [rows for _, rows in changed if rows is not None]
            await asyncio.to_thread(self.bars.insert_changes, pl.concat(frames), pl.concat(replaced))
            self.stats.inserts += 1

    async def _one_by_one(self, outcomes: Sequence[_Outcome]) -> list[_Outcome]:
        """Find the batch that the store refuses: insert each alone, decoded; what still fails waits or is buried."""
        kept: list[_Outcome] = []
        for outcome in outcomes:
            one = await self._compare(outcome.delivery, outcome.headers) if outcome.raw else outcome
            try:
                await self._insert([one])
            except StoreQueryError as error:
                if outcome.delivery.deliveries < MAX_DELIVERIES:
                    await self.consumer.give_back([outcome.delivery], delay_s=1.0)
                    self.stats.given_back += 1
                    continue
                one = _Outcome(
                    outcome.delivery,
                    outcome.headers,
                    outcome="rejected",
                    error=str(error),
                    reason=Reason.INSERT_FAILED,
                    rejected=outcome.headers.rows,
                )
            kept.append(one)
        return kept

    async def _settle(self, outcomes: Sequence[_Outcome]) -> None:
        """Write the ledger, acknowledge, and tell whoever waits."""
        if not outcomes:
            return
        inserted = now_ms()
        await asyncio.to_thread(self.ledger.record, [_ledger_row(o, inserted) for o in outcomes])
        stored = [o for o in outcomes if o.outcome == "stored"]
        for outcome in outcomes:
            if outcome.outcome == "rejected":
                await self._bury(outcome.delivery, outcome.reason, outcome.error)
        await self.consumer.ack([o.delivery for o in stored])
        for outcome in stored:
            self.stats.batches += 1
            self.stats.rows += outcome.headers.rows
            for name in ("new", "restated", "withdrawn", "unchanged", "superseded"):
                setattr(self.stats, name, getattr(self.stats, name) + getattr(outcome, name))
            self.stats.rejected_rows += outcome.rejected
        await self.bus.send_receipts([(o.headers.run_id, o.headers.batch_id, o.outcome) for o in outcomes])

    async def _bury(self, delivery: Delivery, reason: str, error: str) -> None:
        """Send a delivery to dead letters; it leaves its stream only after that was acknowledged."""
        await self.bus.bury(delivery, reason, error)
        await self.consumer.term(delivery)
        self.stats.dead_letters += 1
        log.warning(
            "dead_letter", reason=str(reason), subject=delivery.subject, sequence=delivery.stream_seq, error=error
        )


def _rows_said(delivery: Delivery) -> int:
    """Return the rows that the headers promise, for sizing a group only; nothing where they promise nothing."""
    said = delivery.headers.get("Rows", "")
    return int(said) if said.isdecimal() else 0


def batch_range(headers: BatchHeaders) -> BatchRange:
    """Return the range of the series that a batch covers, both ends inclusive."""
    return BatchRange(headers.symbol, headers.timeframe, headers.source, headers.start_ts, headers.end_ts)


def _ledger_row(outcome: _Outcome, inserted: int) -> IngestRow:
    delivery = outcome.delivery
    return IngestRow.of(
        outcome.headers,
        stream=delivery.stream,
        stream_seq=delivery.stream_seq,
        subject=delivery.subject,
        outcome=outcome.outcome,
        new_rows=outcome.new,
        restated_rows=outcome.restated,
        withdrawn_rows=outcome.withdrawn,
        unchanged_rows=outcome.unchanged,
        superseded_rows=outcome.superseded,
        rejected_rows=outcome.rejected,
        error=outcome.error,
        stages={"bridge_received": int(delivery.received_at.timestamp() * 1000), "inserted": inserted},
    )

"""The bridge: batches of bars from a stream into ClickHouse, the one door.

It moves bytes. A batch of a range in which its source has nothing yet is spliced into one insert with its neighbours,
undecoded, once its ts are seen to lie in that range; a batch whose digest equals what is stored writes nothing; only
where something differs is it decoded and compared row by row. Whatever happened is written to the ingest ledger, then
acknowledged: in this order, so that a crash between any two steps repeats work that the key and the revision make
harmless.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import polars as pl
import structlog

from market_pipeline.breaker import Breaker
from market_pipeline.bus.consumer import BatchConsumer, Delivery
from market_pipeline.bus.dead_letters import Reason
from market_pipeline.bus.envelope import BatchHeaders, decode, now_ms, strays
from market_pipeline.bus.session import BusSession
from market_pipeline.errors import StoreQueryError, UnreadableBatch
from market_pipeline.live.claims import Claims, waves
from market_pipeline.live.inspection import inspect
from market_pipeline.live.reading import RangeReader
from market_pipeline.live.salvage import MAX_REFUSALS, Salvage
from market_pipeline.live.worker import BridgeStats, StreamWorker, insert_breaker
from market_pipeline.market.bars import split_valid
from market_pipeline.market.restatement import compare
from market_pipeline.stores.bars import BarStore, BatchRange
from market_pipeline.stores.ingest_merge import merged_lines
from market_pipeline.stores.ledgers import IngestLedger, IngestRow

log = structlog.get_logger(__name__)


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
    inserted: int = 0
    first_error: str = ""
    attempts: int | None = None
    bad: pl.DataFrame | None = None
    """Malformed rows: dead letters once the store has the rest, since an outage before would bury them again."""
    unread: StoreQueryError | None = None
    """Why the store does not say what it has in the batch's range."""

    @property
    def writes(self) -> bool:
        """Whether the store is asked to take rows of it."""
        return self.outcome == "stored" and (self.raw or (self.frame is not None and self.frame.height > 0))


@dataclass
class BridgeWorker(StreamWorker):
    """Consume one stream of bar batches until told to stop; any number of workers may share a consumer.

    Args:
        consumer: the durable consumer of HISTORY or LIVE.
        bars, ledger: the stores; their blocking calls run in threads.
        bus: for dead letters, and for receipts to the runs that wait.
        max_group_rows: rows that one insert takes at most.
        groups_in_flight: groups that are compared and inserted at once.
        gather_s: how long a group may wait for more batches; short where latency counts.
        quiet_s: how long nothing may come before a group is taken as whole; None: it waits `gather_s`.
        merge_lines: write one line a flush to the ledger, where many small batches share an id.
        executor: where blocking calls run; None: the event loop's threads.
        symbols: the keys that are stored, those of others go to dead letters; None: every symbol.
        breaker: of the store; shown by whoever made it.
    """

    consumer: BatchConsumer
    bars: BarStore
    ledger: IngestLedger
    bus: BusSession
    max_group_rows: int = 262_144
    max_group_batches: int = 32
    groups_in_flight: int = 2
    gather_s: float = 0.3
    quiet_s: float | None = None
    merge_lines: bool = False
    executor: Executor | None = None
    symbols: Collection[str] | None = None
    stats: BridgeStats = field(default_factory=BridgeStats)
    breaker: Breaker = field(default_factory=insert_breaker)
    _claims: Claims = field(default_factory=Claims)
    _reader: RangeReader = field(init=False)
    _salvage: Salvage[_Outcome] = field(init=False)

    def __post_init__(self) -> None:
        self._reader = RangeReader(lambda ranges: self._thread(self.bars.series_digests, ranges))
        self._salvage = Salvage(self._insert, lambda o: o.delivery.stream_seq, self._decoded, lambda o: o.writes)

    async def _store(self, group: list[Delivery]) -> None:
        """Dead-letter what cannot be read, then store the rest in waves that do not overlap."""
        good: list[tuple[Delivery, BatchHeaders]] = []
        for delivery in group:
            try:
                headers = delivery.batch_headers()
            except UnreadableBatch as error:
                await self._bury(delivery, error.reason, str(error))
                continue
            if self.symbols is not None and headers.symbol not in self.symbols:
                await self._bury(delivery, Reason.UNKNOWN_SYMBOL, f"{headers.symbol!r} is not among the instruments")
                continue
            good.append((delivery, headers))
        ranges = [batch_range(headers) for _, headers in good]
        for wave in waves(ranges):
            async with self._claims.hold([ranges[i] for i in wave]):
                outcomes = await self._store_wave([good[i] for i in wave], [ranges[i] for i in wave])
            # The bars are in, so the next group may compare with them while this one's ledger is written.
            await self._settle(outcomes)

    async def _store_wave(
        self, wave: list[tuple[Delivery, BatchHeaders]], ranges: list[BatchRange]
    ) -> Sequence[_Outcome]:
        """Compare a wave with what is stored and write what differs; return what each batch came to."""
        stored = await self._reader.digests(ranges)
        outcomes: list[_Outcome] = []
        for (delivery, headers), found in zip(wave, stored, strict=True):
            if isinstance(found, StoreQueryError):
                outcomes.append(_Outcome(delivery, headers, unread=found))
            elif found.rows == 0:
                outcomes.append(_Outcome(delivery, headers, raw=True, new=headers.rows))
            elif found == (headers.rows, headers.digest):
                outcomes.append(_Outcome(delivery, headers, unchanged=headers.rows))
            else:
                outcomes.append(await self._compare(delivery, headers))
        outcomes = await self._inspected(await self._within_their_ranges(outcomes))
        kept, refused = await self._salvage.insert(outcomes)
        for outcome, refusal in refused:
            if refusal.count < MAX_REFUSALS:
                self.stats.given_back += 1
                await self.consumer.give_back([outcome.delivery], delay_s=1.0)
            else:
                kept.append(_rejected(outcome.delivery, outcome.headers, Reason.INSERT_FAILED, refusal.last_error))
                kept[-1].first_error, kept[-1].attempts = refusal.first_error, refusal.count
        return [replace(outcome, inserted=now_ms()) for outcome in kept]

    async def _within_their_ranges(self, outcomes: list[_Outcome]) -> list[_Outcome]:
        """Compare what would be moved undecoded though it may hold rows that its range says nothing of."""
        verified = [o for o in outcomes if o.raw and o.headers.run_id]  # the others are decoded in any case
        found = (
            await self._thread(lambda: [strays(o.delivery.payload, o.headers) for o in verified]) if verified else []
        )
        doubtful = {id(o) for o, strayed in zip(verified, found, strict=True) if strayed}
        return [await self._decoded(o) if id(o) in doubtful else o for o in outcomes]

    async def _inspected(self, outcomes: list[_Outcome]) -> list[_Outcome]:
        """Look into batches that nobody else verifies: reject unreadable ones, set malformed rows aside."""
        unverified = [o for o in outcomes if o.raw and not o.headers.run_id]
        if not unverified:
            return outcomes
        findings = await self._thread(inspect, [(o.delivery.payload, o.headers) for o in unverified])
        found = {id(o): finding for o, finding in zip(unverified, findings, strict=True) if finding is not None}
        judged: list[_Outcome] = []
        for one in outcomes:
            finding = found.get(id(one))
            if finding is None:
                judged.append(one)
            elif finding.error is not None:
                judged.append(_rejected(one.delivery, one.headers, finding.error.reason, str(finding.error)))
            else:
                new, bad = finding.good, finding.bad
                judged.append(
                    _Outcome(one.delivery, one.headers, frame=new, new=new.height, rejected=bad.height, bad=bad)
                )
        return judged

    async def _compare(self, delivery: Delivery, headers: BatchHeaders) -> _Outcome:
        """Decode a batch and keep the rows that change what is stored; malformed rows are set aside."""
        where = batch_range(headers)
        try:
            frame = await self._thread(decode, delivery.payload, headers)
        except UnreadableBatch as error:
            return _rejected(delivery, headers, error.reason, str(error))
        good, bad = split_valid(frame)
        try:
            stored = await self._thread(self.bars.stored_rows, *where, with_tombstones=True)
        except StoreQueryError as error:
            return _Outcome(delivery, headers, unread=error)
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
            bad=bad,
        )

    async def _insert(self, outcomes: Sequence[_Outcome]) -> None:
        """Write the spliced raw batches in one insert and the changed rows, with what they replace, in another."""
        for outcome in outcomes:
            if outcome.unread is not None:  # found and counted with those that the store does not take
                raise outcome.unread
        payloads = [o.delivery.payload for o in outcomes if o.raw]
        changed = [
            (o.frame, o.replaced) for o in outcomes if o.outcome == "stored" and o.frame is not None and o.frame.height
        ]
        if payloads:
            await self._thread(self.bars.insert_arrow_messages, payloads)
            self.stats.inserts += 1
        if changed:
            frame = pl.concat([frame for frame, _ in changed])
            replaced = [rows for _, rows in changed if rows is not None]
            if replaced:
                await self._thread(self.bars.insert_changes, frame, pl.concat(replaced))
            else:  # what was only inspected has nothing before it
                await self._thread(self.bars.insert_frame, frame)
            self.stats.inserts += 1

    async def _decoded(self, outcome: _Outcome) -> _Outcome:
        return await self._compare(outcome.delivery, outcome.headers) if outcome.raw else outcome

    async def _settle(self, outcomes: Sequence[_Outcome]) -> None:
        """Write the ledger, bury what is malformed, acknowledge, and tell whoever waits."""
        if not outcomes:
            return
        lines = [_ledger_row(o) for o in outcomes]
        await self._thread(self.ledger.record, merged_lines(lines) if self.merge_lines else lines)
        stored = [o for o in outcomes if o.outcome == "stored"]
        for outcome in outcomes:
            if outcome.outcome == "rejected" and await self._bury(
                outcome.delivery,
                outcome.reason,
                outcome.error,
                first_error=outcome.first_error,
                attempts=outcome.attempts,
            ):
                self._salvage.forget(outcome)
        whole = [o for o in stored if o.bad is None or await self._bury_rows(o.delivery, o.bad)]
        await self.consumer.ack([o.delivery for o in whole])
        for outcome in whole:
            self._count(outcome, outcome.headers.rows)
        await self.bus.send_receipts([(o.headers.run_id, o.headers.batch_id, o.outcome) for o in outcomes])


def _rejected(delivery: Delivery, headers: BatchHeaders, reason: str, error: str) -> _Outcome:
    return _Outcome(delivery, headers, outcome="rejected", error=error, reason=reason, rejected=headers.rows)


def batch_range(headers: BatchHeaders) -> BatchRange:
    """Return the range of the series that a batch covers, both ends inclusive."""
    return BatchRange(headers.symbol, headers.timeframe, headers.source, headers.start_ts, headers.end_ts)


def _ledger_row(outcome: _Outcome) -> IngestRow:
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
        stages={"bridge_received": int(delivery.received_at.timestamp() * 1000), "inserted": outcome.inserted},
    )

"""The bridge of external observations: small batches, each decoded and compared with what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import polars as pl

from market_pipeline.breaker import Breaker
from market_pipeline.bus.consumer import BatchConsumer, Delivery
from market_pipeline.bus.dead_letters import Reason
from market_pipeline.bus.envelope import now_ms
from market_pipeline.bus.external_envelope import ExternalHeaders, decode_external
from market_pipeline.bus.session import BusSession
from market_pipeline.errors import UnreadableBatch
from market_pipeline.live.salvage import MAX_REFUSALS, Refusal, Salvage
from market_pipeline.live.worker import BridgeStats, StreamWorker, insert_breaker
from market_pipeline.market.external import compare_observations, split_valid_observations
from market_pipeline.market.restatement import Changes
from market_pipeline.stores.external import FIRST, LAST, ExternalStore
from market_pipeline.stores.ingest_merge import SEVERAL
from market_pipeline.stores.ledgers import IngestLedger, IngestRow


@dataclass(eq=False)
class _Batch:
    """One delivery, decoded and split; `changes`: what it writes, once it was compared with what is stored."""

    delivery: Delivery
    headers: ExternalHeaders
    frame: pl.DataFrame
    good: pl.DataFrame
    bad: pl.DataFrame
    changes: Changes | None = None

    @property
    def writes(self) -> bool:
        """Whether the store is asked to take rows of it."""
        return self.changes is not None and self.changes.write.height > 0


@dataclass
class ExternalWorker(StreamWorker):
    """Consume EXTERNAL until told to stop; arguments as BridgeWorker's.

    Batches are stored one after the other: they are few, and a later one may say something else of the same values. One
    that the store refuses waits alone; their revisions tell which value is the later one, not their order.
    """

    consumer: BatchConsumer
    store: ExternalStore
    ledger: IngestLedger
    bus: BusSession
    max_group_rows: int = 65_536
    max_group_batches: int = 16
    groups_in_flight: int = 1
    gather_s: float = 0.0
    executor: Executor | None = None
    stats: BridgeStats = field(default_factory=BridgeStats)
    breaker: Breaker = field(default_factory=insert_breaker)
    _salvage: Salvage[_Batch] = field(init=False)

    def __post_init__(self) -> None:
        self._salvage = Salvage(self._write, lambda b: b.delivery.stream_seq, _itself, lambda b: b.writes)

    async def _store(self, group: list[Delivery]) -> None:
        for delivery in group:
            try:
                headers = ExternalHeaders.from_nats(delivery.headers)
                frame = await self._thread(decode_external, delivery.payload, headers)
            except UnreadableBatch as error:
                await self._bury(delivery, error.reason, str(error))
                continue
            await self._store_one(_Batch(delivery, headers, frame, *_split(frame)))

    async def _store_one(self, batch: _Batch) -> None:
        """Write what differs, then the ledger's line, then acknowledge; a malformed row is dead-lettered alone."""
        delivery, headers = batch.delivery, batch.headers
        _, refused = await self._salvage.insert([batch])
        if refused:
            await self._refused(batch, refused[0][1])
            return
        assert batch.changes is not None
        line = _ledger_row(batch, batch.changes)
        await self._thread(self.ledger.record, [line])
        if not await self._bury_rows(delivery, batch.bad):
            return
        await self.consumer.ack([delivery])
        self._count(_Counts(batch.changes, batch.bad.height), headers.rows)
        await self.bus.send_receipts([(headers.run_id, headers.batch_id, "stored")])

    async def _refused(self, batch: _Batch, refusal: Refusal) -> None:
        """Give a batch back that the store refuses, or give it up once it was refused often enough."""
        delivery, headers = batch.delivery, batch.headers
        if refusal.count < MAX_REFUSALS:
            self.stats.given_back += 1
            await self.consumer.give_back([delivery], delay_s=1.0)
            return
        rejected = _ledger_row(batch, None, error=refusal.last_error)
        await self._thread(self.ledger.record, [rejected])
        error, first = refusal.last_error, refusal.first_error
        if await self._bury(delivery, Reason.INSERT_FAILED, error, first_error=first, attempts=refusal.count):
            self._salvage.forget(batch)
        await self.bus.send_receipts([(headers.run_id, headers.batch_id, "rejected")])

    async def _write(self, batches: Sequence[_Batch]) -> None:
        """Compare with what is stored, and write what differs; done once more it changes nothing."""
        for batch in batches:
            headers = batch.headers
            if batch.changes is None:
                series = batch.good.get_column("series").unique().to_list()
                span = headers.start_ts, headers.end_ts
                stored = await self._thread(self.store.stored, headers.dataset, series, *span)
                batch.changes = compare_observations(batch.good, stored)
            if batch.writes:
                written = batch.changes.write.with_columns(
                    pl.lit(headers.dataset).alias("dataset"), pl.lit(headers.batch_id, pl.UInt64).alias("batch_id")
                )
                await self._thread(self.store.insert, written)
                self.stats.inserts += 1


async def _itself(batch: _Batch) -> _Batch:
    return batch


class _Counts:
    """What StreamWorker counts of a batch."""

    def __init__(self, changes: Changes, rejected: int) -> None:
        self.new, self.restated, self.withdrawn = changes.new, changes.restated, changes.withdrawn
        self.unchanged, self.superseded, self.rejected = changes.unchanged, changes.superseded, rejected


def _split(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off the malformed rows, and those of times that the store's type cannot hold: it would wrap them."""
    good, bad = split_valid_observations(frame)
    holds = pl.col("ts").is_between(FIRST, LAST)
    outside = good.filter(~holds).with_columns(pl.lit("ts: outside 1900 to 2299").alias("reason"))
    return good.filter(holds), pl.concat([bad, outside])


def _ledger_row(batch: _Batch, changes: Changes | None, *, error: str = "") -> IngestRow:
    """Return the line of a batch that was stored with these changes, or rejected where there are none."""
    delivery, headers = batch.delivery, batch.headers
    names = batch.frame.get_column("series").unique().to_list()
    return IngestRow.of(
        _LedgerHeaders(headers, (names[0] or "") if len(names) == 1 else SEVERAL),
        stream=delivery.stream,
        stream_seq=delivery.stream_seq,
        subject=delivery.subject,
        outcome="rejected" if changes is None else "stored",
        new_rows=changes.new if changes else 0,
        restated_rows=changes.restated if changes else 0,
        withdrawn_rows=changes.withdrawn if changes else 0,
        unchanged_rows=changes.unchanged if changes else 0,
        superseded_rows=changes.superseded if changes else 0,
        rejected_rows=batch.bad.height if changes else headers.rows,
        error=error,
        stages={"bridge_received": int(delivery.received_at.timestamp() * 1000), "inserted": now_ms()},
    )


class _LedgerHeaders:
    """The headers as the ledger knows them: the dataset is the source, the series the symbol, no timeframe."""

    timeframe = ""

    def __init__(self, headers: ExternalHeaders, series: str) -> None:
        self.symbol, self.source = series, headers.dataset
        self.batch_id, self.correlation_id = headers.batch_id, headers.correlation_id
        self.run_id, self.vendor_request_id = headers.run_id, headers.vendor_request_id
        self.rows, self.digest, self.stages = headers.rows, headers.digest, headers.stages
        self.start_ts, self.end_ts = headers.start_ts, headers.end_ts

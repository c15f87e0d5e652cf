"""The bridge of external observations: small batches, each decoded and compared with what is stored."""

from __future__ import annotations

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
from market_pipeline.live.worker import BridgeStats, StreamWorker, insert_breaker
from market_pipeline.market.external import compare_observations, split_valid_observations
from market_pipeline.market.restatement import Changes
from market_pipeline.stores.external import FIRST, LAST, ExternalStore
from market_pipeline.stores.ingest_merge import SEVERAL
from market_pipeline.stores.ledgers import IngestLedger, IngestRow


@dataclass
class ExternalWorker(StreamWorker):
    """Consume EXTERNAL until told to stop; arguments as BridgeWorker's.

    Batches are stored one after the other: they are few, and a later one may say something else of the same values.
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

    async def _store(self, group: list[Delivery]) -> None:
        for delivery in group:
            try:
                headers = ExternalHeaders.from_nats(delivery.headers)
                frame = await self._thread(decode_external, delivery.payload, headers)
            except UnreadableBatch as error:
                await self._bury(delivery, error.reason, str(error))
                continue
            await self._store_one(delivery, headers, frame)

    async def _store_one(self, delivery: Delivery, headers: ExternalHeaders, frame: pl.DataFrame) -> None:
        """Write what differs, then the ledger's line, then acknowledge; a malformed row is dead-lettered alone."""
        good, bad = _split(frame)
        for row in bad.iter_slices(1):
            text = row.drop("reason").write_ndjson().encode()
            await self.bus.bury(delivery, Reason.MALFORMED_ROW, str(row["reason"][0]), rows=text)
        series = good.get_column("series").unique().to_list()
        stored = await self._thread(self.store.stored, headers.dataset, series, headers.start_ts, headers.end_ts)
        changes = compare_observations(good, stored)
        if changes.write.height:
            written = changes.write.with_columns(
                pl.lit(headers.dataset).alias("dataset"), pl.lit(headers.batch_id, pl.UInt64).alias("batch_id")
            )
            await self._thread(self.store.insert, written)
            self.stats.inserts += 1
        line = _ledger_row(delivery, headers, changes, frame, rejected=bad.height)
        await self._thread(self.ledger.record, [line])
        await self.consumer.ack([delivery])
        self._count(_Counts(changes, bad.height), headers.rows)
        await self.bus.send_receipts([(headers.run_id, headers.batch_id, "stored")])


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


def _ledger_row(
    delivery: Delivery, headers: ExternalHeaders, changes: Changes, frame: pl.DataFrame, *, rejected: int
) -> IngestRow:
    names = frame.get_column("series").unique().to_list()
    return IngestRow.of(
        _LedgerHeaders(headers, (names[0] or "") if len(names) == 1 else SEVERAL),
        stream=delivery.stream,
        stream_seq=delivery.stream_seq,
        subject=delivery.subject,
        outcome="stored",
        new_rows=changes.new,
        restated_rows=changes.restated,
        withdrawn_rows=changes.withdrawn,
        unchanged_rows=changes.unchanged,
        superseded_rows=changes.superseded,
        rejected_rows=rejected,
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

"""The one transaction that stores batches: who reigns, which batches are new, their lines, their ticks.

Whoever stores ticks of a symbol locks the symbol's row of tick_epochs first. So two writers with the same batch, or
with batches of two collectors, come one after the other, and the second sees all that the first did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl
from psycopg import sql

from market_pipeline.errors import StoreQueryError
from market_pipeline.market.timeframes import MILLISECOND
from market_pipeline.stores.ticks.batch import BatchResult, Outcome, StoreReport, TickBatch
from market_pipeline.stores.ticks.connection import AsyncConnection, rows
from market_pipeline.stores.ticks.copy_format import COLUMNS, encode_rows
from market_pipeline.stores.ticks.losses import LEASE, TickLoss, parameters
from market_pipeline.stores.ticks.sql_files import load_sql


@dataclass(slots=True)
class _Reign:
    """The epoch that reigns over a symbol, and how far older epochs reach into it."""

    epoch: int
    first_ts: datetime | None
    overlap_until: datetime | None
    last_ts: datetime | None = None  # of this call's batches
    raised: bool = False
    # epoch -> how far older ones reach into it, of the epochs of this call's batches
    overlaps: dict[int, datetime | None] = field(default_factory=dict)

    def take(self, batch: TickBatch, stored_until: datetime | None) -> None:
        """Count a batch that will be stored; `stored_until` is the last ts in the store."""
        if batch.epoch > self.epoch:
            self.overlap_until = max(
                (ts for ts in (self.overlap_until, self.last_ts, stored_until) if ts is not None), default=None
            )
            self.epoch, self.first_ts, self.raised = batch.epoch, batch.first_ts, True
        if batch.epoch == self.epoch:  # else it is replayed, and changes no reign
            self.overlaps[self.epoch] = self.overlap_until
        self.last_ts = batch.last_ts if self.last_ts is None else max(self.last_ts, batch.last_ts)


@dataclass(slots=True)
class _Plan:
    results: dict[int, BatchResult] = field(default_factory=dict)
    stored: list[TickBatch] = field(default_factory=list)
    replayed: list[TickBatch] = field(default_factory=list)  # those of the stored ones whose reign is over
    fenced: list[TickBatch] = field(default_factory=list)


async def store(
    connection: AsyncConnection, batches: Sequence[TickBatch], encoded: bytes, floors: Mapping[str, int] | int
) -> StoreReport:
    """Store the new ones of the batches (all with rows, all ids different); all of it happens or none.

    `encoded`: what `encode` makes of all the batches: nearly always all of them are new.
    `floors`: epochs below which a batch is fenced, beside what the store knows; one for all symbols, or by symbol.
    """
    async with connection.transaction():
        reigns = await _lock(connection, sorted({batch.symbol for batch in batches}))
        plan = await _plan(connection, batches, reigns, floors)
        superseded = 0
        if plan.stored:
            await _insert_lines(connection, plan.stored)
            all_are_new = len(plan.stored) == len(batches)
            await copy_ticks(connection, encoded if all_are_new else await asyncio.to_thread(encode, plan.stored))
            superseded = await _settle_reigns(connection, plan.stored, reigns)
            superseded += await _settle_replayed(connection, plan.replayed)
        if lost := [loss for batch in plan.fenced if (loss := _loss(batch, reigns[batch.symbol]))]:
            await connection.execute(load_sql("losses_record"), parameters(lost))
    return StoreReport(
        [plan.results[batch.batch_id] for batch in batches], sum(batch.rows for batch in plan.stored), superseded
    )


async def _lock(connection: AsyncConnection, symbols: list[str]) -> dict[str, _Reign]:
    await connection.execute(load_sql("epochs_meet"), {"symbols": symbols})
    return {symbol: _Reign(*reign) for symbol, *reign in await rows(connection, "epochs_lock", {"symbols": symbols})}


async def _plan(
    connection: AsyncConnection,
    batches: Sequence[TickBatch],
    reigns: dict[str, _Reign],
    floors: Mapping[str, int] | int,
) -> _Plan:
    """Judge the batches in the order given: what came before a change of epoch belongs to the older one."""
    ids = [batch.batch_id for batch in batches]
    known = {row[0] for row in await rows(connection, "batches_known", {"batch_ids": ids})}
    stored_until: dict[str, datetime | None] = {}
    plan = _Plan()
    for batch in batches:
        reign = reigns[batch.symbol]
        floor = floors if isinstance(floors, int) else floors.get(batch.symbol, 0)
        if batch.batch_id in known:
            result = BatchResult(batch.batch_id, Outcome.DUPLICATE)
        elif batch.epoch < max(reign.epoch, floor) and not batch.replayed:
            detail = f"epoch {batch.epoch} of {batch.collector_id or 'its collector'}, {max(reign.epoch, floor)} reigns"
            result = BatchResult(batch.batch_id, Outcome.FENCED, detail)
            plan.fenced.append(batch)
        else:
            if batch.epoch < reign.epoch:
                plan.replayed.append(batch)
            elif batch.epoch > reign.epoch and batch.symbol not in stored_until:
                stored_until[batch.symbol] = await _stored_until(connection, batch.symbol)
            reign.take(batch, stored_until.get(batch.symbol))
            result = BatchResult(batch.batch_id, Outcome.STORED)
            plan.stored.append(batch)
        plan.results[batch.batch_id] = result
    return plan


async def _stored_until(connection: AsyncConnection, symbol: str) -> datetime | None:
    last: datetime | None = (await rows(connection, "batches_last_ts", {"symbol": symbol}))[0][0]
    return last


async def _insert_lines(connection: AsyncConnection, batches: list[TickBatch]) -> None:
    columns = (
        "batch_id",
        "epoch",
        "first_ts",
        "last_ts",
        "first_received",
        "rows",
        "symbol",
        "collector_id",
        "session_id",
        "correlation_id",
    )
    lines = {name: [getattr(batch, name) for batch in batches] for name in columns}
    inserted = {row[0] for row in await rows(connection, "batches_insert", lines)}
    if taken := [batch for batch in batches if batch.batch_id not in inserted]:
        # the symbol's lock was held when we looked: only a batch of another symbol can have come between
        raise StoreQueryError(f"batch {taken[0].batch_id} of {taken[0].symbol} has the id of a batch of another symbol")


def encode(batches: Sequence[TickBatch]) -> bytes:
    """Return the ticks of the batches as binary COPY data."""
    return encode_rows(pl.concat([batch.frame for batch in batches], rechunk=True))


async def copy_ticks(connection: AsyncConnection, data: bytes) -> None:
    """COPY ticks (`encode_rows`) into market_ticks."""
    statement = sql.SQL(load_sql("ticks_copy")).format(columns=sql.SQL(", ").join(map(sql.Identifier, COLUMNS)))
    async with connection.cursor() as cursor, cursor.copy(statement) as copy:
        await copy.write(data)


async def _settle_reigns(connection: AsyncConnection, stored: list[TickBatch], reigns: dict[str, _Reign]) -> int:
    """Note changes of epoch, and take away what a collector of an older epoch sent as well; return its number."""
    superseded = 0
    for symbol, reign in sorted(reigns.items()):
        if reign.raised:
            await connection.execute(
                load_sql("epochs_raise"),
                {
                    "symbol": symbol,
                    "epoch": reign.epoch,
                    "first_ts": reign.first_ts,
                    "overlap_until": reign.overlap_until,
                },
            )
        for epoch, until in sorted(reign.overlaps.items()):
            fresh = [batch for batch in stored if (batch.symbol, batch.epoch) == (symbol, epoch)]
            superseded += await _supersede(connection, symbol, epoch, fresh, until)
    return superseded


async def _settle_replayed(connection: AsyncConnection, replayed: list[TickBatch]) -> int:
    """Take away what other collectors sent as well; return its number."""
    superseded = 0
    for symbol, epoch in sorted({(batch.symbol, batch.epoch) for batch in replayed}):
        fresh = [batch for batch in replayed if (batch.symbol, batch.epoch) == (symbol, epoch)]
        superseded += await _supersede(connection, symbol, epoch, fresh, max(batch.last_ts for batch in fresh))
    return superseded


async def _supersede(
    connection: AsyncConnection, symbol: str, epoch: int, fresh: list[TickBatch], until: datetime | None
) -> int:
    start = min(batch.first_ts for batch in fresh)
    if until is None or start > until:
        return 0
    ids = [batch.batch_id for batch in fresh]
    values = {"symbol": symbol, "epoch": epoch, "start": start, "until": until, "fresh": ids}
    return int((await rows(connection, "ticks_supersede", values))[0][0])


def _loss(batch: TickBatch, reign: _Reign) -> TickLoss | None:
    """Return what a fenced batch may have had alone: its time before the first tick of the epoch that reigns."""
    end = batch.last_ts + MILLISECOND
    if reign.first_ts is not None and reign.epoch > batch.epoch:
        end = min(end, reign.first_ts)
    if end <= batch.first_ts:
        return None
    return TickLoss(batch.symbol, batch.first_ts, end, LEASE, batch.session_id, batch.collector_id)

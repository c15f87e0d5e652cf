"""Store ticks: batches in, each exactly once.

One TickStore holds one connection, made anew when it broke; its calls come one after the other. Nothing is tried again
here: after StoreUnreachable the same batches can be given again, whatever became of them.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from types import TracebackType
from typing import Any

import polars as pl
import psycopg
import structlog

from market_pipeline.errors import BadRange, StoreQueryError
from market_pipeline.market.ticks import (
    STORED_TICK_SCHEMA,
    TICK_SCHEMA,
    InvalidTicks,
    check_tick_columns,
    validate_ticks,
)
from market_pipeline.settings import PostgresSettings
from market_pipeline.stores.ticks import migrations, partitions, transaction
from market_pipeline.stores.ticks.batch import BatchResult, Outcome, StoreReport, TickBatch
from market_pipeline.stores.ticks.connection import connect, errors
from market_pipeline.stores.ticks.losses import LOSSES_SCHEMA, Loss, parameters
from market_pipeline.stores.ticks.migrations import Layout
from market_pipeline.stores.ticks.sql_files import load_sql

log = structlog.get_logger(__name__)

MAX_BATCH_ID = 2**63 - 1
# A clock so far ahead is wrong; and every day named by a tick costs a partition.
MAX_FUTURE = timedelta(days=1)
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
# The stream keeps ticks for 48 hours: a batch whose line is gone must not come again.
MIN_KEPT_DAYS = 3

_Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class TickStore:
    """Store ticks and the intervals in which they were lost.

        async with TickStore(settings.postgres) as store:
            report = await store.store(batches)

    Every method raises StoreUnreachable (transient), StoreAuthError or StoreQueryError (terminal).
    """

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._connection: _Connection | None = None
        self._layout: Layout | None = None
        self._partitions = partitions.Partitions()

    @property
    def layout(self) -> Layout:
        """Whether market_ticks is a hypertable or has daily partitions; known once the store has started."""
        if self._layout is None:
            raise RuntimeError("the tick store has not been started")
        return self._layout

    async def __aenter__(self) -> TickStore:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> float:
        """Bring the schema up to date and prove that the table takes and returns ticks; return seconds (`probe`)."""
        async with self._lock:
            await self._ensure_schema()
        return await self.probe()

    async def close(self) -> None:
        """Close the connection; the store can be used again and makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def probe(self) -> float:
        """Prove that market_ticks answers: copy a tick of now into it, read it back, and undo that; return seconds."""
        began = time.monotonic()
        batch_id, ts = secrets.randbelow(MAX_BATCH_ID) + 1, datetime.now(UTC).replace(microsecond=0)
        row = {"symbol": "probe", "ts": ts, "kind": "quote", "bid": 1.0, "ask": 1.0, "received_at": ts}
        frame = check_tick_columns(pl.DataFrame([row], schema_overrides=TICK_SCHEMA), where="probe").with_columns(
            batch_id=pl.lit(batch_id, pl.UInt64), n=pl.lit(0, pl.UInt32)
        )
        async with self._session({ts.date()}) as connection, connection.transaction(force_rollback=True):
            await transaction.copy_ticks(connection, [frame])
            values = {"symbol": "probe", "ts": ts, "batch_id": batch_id}
            found = await (await connection.execute(load_sql("probe_read"), values)).fetchone()
            if found != (1,):
                where = f"PostgreSQL at {self._settings.host}:{self._settings.port}"
                raise StoreQueryError(f"{where} took a tick into market_ticks and does not return it")
        return time.monotonic() - began

    async def store(self, batches: Sequence[TickBatch], *, min_epoch: int | Mapping[str, int] = 0) -> StoreReport:
        """Store the batches that are new, all in one transaction, and say what became of each.

        A batch stored before is a duplicate, and one of a lower epoch than the highest stored for its symbol (or than
        `min_epoch`: one for all, or by symbol) is fenced: both are left out, and time that only the fenced batch may
        have covered is recorded as lost (cause `lease`). Where collectors of two epochs sent the same ticks, they stay
        once. Give batches in the order of the stream. A batch that cannot be ticks is rejected alone.
        """
        judged = await asyncio.to_thread(_judge, batches)
        wanted: dict[int, TickBatch] = {}
        for batch, result in zip(batches, judged, strict=True):
            if result is None:
                wanted.setdefault(batch.batch_id, batch)
        done = StoreReport([])
        if wanted:
            days = {day for batch in wanted.values() for day in _days(batch)}
            try:
                done = await self._store(list(wanted.values()), days, min_epoch)
            except psycopg.errors.CheckViolation:  # another process dropped a partition since we looked
                self._partitions.forget()
                async with self._translated():
                    done = await self._store(list(wanted.values()), days, min_epoch)
        by_id = {result.batch_id: result for result in done.results}
        results = []
        for batch, refused in zip(batches, judged, strict=True):
            # given twice in one call: the first takes the result, the second is its duplicate
            found = refused or by_id.pop(batch.batch_id, BatchResult(batch.batch_id, Outcome.DUPLICATE))
            results.append(found)
        report = StoreReport(results, done.ticks, done.superseded)
        for result in (*report.of(Outcome.FENCED), *report.of(Outcome.REJECTED)):
            log.warning(
                "tick_batch_refused", batch_id=result.batch_id, outcome=result.outcome.value, detail=result.detail
            )
        return report

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
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from types import TracebackType

import polars as pl
import psycopg
import structlog

from market_pipeline.errors import BadRange, StoreQueryError
from market_pipeline.market.ticks import TICK_SCHEMA, check_tick_columns
from market_pipeline.market.timeframes import midnight
from market_pipeline.settings import PostgresSettings
from market_pipeline.stores.ticks import migrations, partitions, transaction
from market_pipeline.stores.ticks.batch import BatchResult, Outcome, StoreReport, TickBatch
from market_pipeline.stores.ticks.connection import AsyncConnection, connect, errors, rows
from market_pipeline.stores.ticks.copy_format import encode_rows
from market_pipeline.stores.ticks.judging import MAX_BATCH_ID, days_of, judge
from market_pipeline.stores.ticks.losses import LOSSES_SCHEMA, Loss, TickLoss, parameters
from market_pipeline.stores.ticks.migrations import Layout
from market_pipeline.stores.ticks.sql_files import load_sql

log = structlog.get_logger(__name__)

# The stream keeps ticks for 48 hours: a batch whose line is gone must not come again.
MIN_KEPT_DAYS = 3


@dataclass(frozen=True, slots=True)
class Dropped:
    """Say what went: everything before `before`; days (partitions or chunks), lines of batches, losses."""

    before: date
    days: int
    batches: int
    losses: int


class TickStore:
    """Store ticks and the intervals in which they were lost.

        async with TickStore(settings.postgres) as store:
            report = await store.store(batches)

    Every method raises StoreUnreachable (transient), StoreAuthError or StoreQueryError (terminal).
    """

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._connection: AsyncConnection | None = None
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
        """Prove that the tables answer: store a tick of now and a loss, read the tick, undo that; return seconds."""
        began = time.monotonic()
        batch_id, ts = secrets.randbelow(MAX_BATCH_ID) + 1, datetime.now(UTC).replace(microsecond=0)
        row = {"symbol": "probe", "ts": ts, "kind": "quote", "bid": 1.0, "ask": 1.0, "received_at": ts}
        frame = check_tick_columns(pl.DataFrame([row], schema_overrides=TICK_SCHEMA), where="probe").with_columns(
            batch_id=pl.lit(batch_id, pl.UInt64), n=pl.lit(0, pl.UInt32)
        )
        async with self._session({ts.date()}) as connection, connection.transaction(force_rollback=True):
            await transaction.copy_ticks(connection, encode_rows(frame))
            values = {"symbol": "probe", "ts": ts, "batch_id": batch_id}
            if await rows(connection, "probe_read", values) != [(1,)]:
                where = f"PostgreSQL at {self._settings.host}:{self._settings.port}"
                raise StoreQueryError(f"{where} took a tick into market_ticks and does not return it")
            loss = TickLoss("probe", ts, ts + timedelta(seconds=1), "probe", str(batch_id))
            await connection.execute(load_sql("losses_record"), parameters([loss]))
        return time.monotonic() - began

    async def store(self, batches: Sequence[TickBatch], *, min_epoch: int | Mapping[str, int] = 0) -> StoreReport:
        """Store the batches that are new, all in one transaction, and say what became of each.

        A batch stored before is a duplicate, and one of a lower epoch than the highest stored for its symbol (or than
        `min_epoch`: one for all, or by symbol) is fenced: both are left out, and time that only the fenced batch may
        have covered is recorded as lost (cause `lease`). A dead letter that is replayed is not fenced. Where collectors
        of two epochs sent the same ticks, they stay once. Give batches in the order of the stream: of calls at once
        either may be the first. A batch that cannot be ticks is rejected alone.
        """
        # outside the lock, so that the batches of the next call are prepared while PostgreSQL takes these
        judged, wanted, days, encoded = await asyncio.to_thread(_prepare, batches)
        done = StoreReport([])
        if wanted:
            try:
                done = await self._store(wanted, days, encoded, min_epoch)
            except StoreQueryError as error:
                if not isinstance(error.__cause__, psycopg.errors.CheckViolation):
                    raise
                self._partitions.forget()  # another process dropped a partition since we looked
                done = await self._store(wanted, days, encoded, min_epoch)
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

    async def record_losses(self, losses: Iterable[Loss]) -> None:
        """Record intervals in which ticks may have been lost; one recorded before keeps its latest end.

        Raises:
            ValueError: an interval ends at or before its start.
        """
        values = parameters(losses)
        if values["symbol"]:
            async with self._session() as connection:
                await connection.execute(load_sql("losses_record"), values)

    async def losses(self, symbol: str, start: datetime, end: datetime) -> pl.DataFrame:
        """Return the recorded losses of a symbol (the key) that touch [start, end), by start: LOSSES_SCHEMA."""
        async with self._session() as connection:
            values = {"symbol": symbol, "start": start, "end": end}
            found = await rows(connection, "losses", values)
        return pl.DataFrame(found, schema=LOSSES_SCHEMA, orient="row")

    async def last_times(self) -> dict[str, datetime]:
        """Return the time of the last tick stored of each symbol (the key)."""
        async with self._session() as connection:
            return dict(await rows(connection, "batches_last_times"))

    async def epochs(self) -> dict[str, int]:
        """Return the epoch that reigns over each symbol."""
        async with self._session() as connection:
            return dict(await rows(connection, "epochs"))

    async def forget_epochs(self, symbols: Iterable[str]) -> None:
        """Let any epoch reign over the symbols again: for after the leases were lost and count anew from below."""
        async with self._session() as connection:
            await connection.execute(load_sql("epochs_forget"), {"symbols": list(symbols)})

    async def drop_older_than(self, days: int) -> Dropped:
        """Drop whole UTC days that ended `days` days ago or earlier: ticks, lines of batches, losses.

        Writers and readers of other days don't wait. Run it daily.

        Raises:
            BadRange: fewer than 3 days: the stream may still deliver them again.
        """
        _check_kept(days)
        cutoff = datetime.now(UTC).date() - timedelta(days=days)
        before = midnight(cutoff)
        async with self._lock:
            await self._ensure_schema()
        self._partitions.forget()
        # a connection of its own: it may take long, and storing goes on meanwhile
        with errors(self._settings):
            async with await connect(self._settings, statement_timeout_s=0) as connection:
                if self.layout is Layout.PARTITIONS:
                    dropped = await partitions.drop_before(connection, cutoff)
                else:
                    dropped = (await rows(connection, "chunks_drop", {"cutoff": before}))[0][0]
                batches = (await connection.execute(load_sql("batches_drop"), {"cutoff": before})).rowcount
                losses = (await connection.execute(load_sql("losses_drop"), {"cutoff": before})).rowcount
        report = Dropped(cutoff, dropped, batches, losses)
        log.info("ticks_dropped", before=cutoff.isoformat(), days=dropped, batches=batches, losses=losses)
        return report

    async def set_retention(self, days: int | None) -> bool:
        """Let TimescaleDB itself drop days older than that (None: keep all); False where there are only partitions.

        `drop_older_than` is still needed, for the lines of batches and the losses.

        Raises:
            BadRange: fewer than 3 days.
            StoreQueryError: the Apache edition of TimescaleDB has no policies.
        """
        if days is not None:
            _check_kept(days)
        async with self._session() as connection:
            if self.layout is Layout.PARTITIONS:
                return False
            async with connection.transaction():
                await connection.execute(load_sql("retention_remove"))
                if days is not None:
                    await connection.execute(load_sql("retention_add"), {"days": days})
        return True

    async def _store(
        self, batches: list[TickBatch], days: set[date], encoded: bytes, min_epoch: int | Mapping[str, int]
    ) -> StoreReport:
        async with self._session(days) as connection:
            return await transaction.store(connection, batches, encoded, min_epoch)

    async def _ensure_schema(self) -> None:
        if self._layout is None:
            self._layout = await migrations.apply(self._settings)

    @asynccontextmanager
    async def _session(self, days: Iterable[date] = ()) -> AsyncIterator[AsyncConnection]:
        """Yield the connection to one caller at a time, with a partition for each of the days."""
        async with self._lock:
            await self._ensure_schema()
            if self._connection is None or self._connection.closed:
                self._connection = await connect(self._settings)
            connection = self._connection
            try:
                with errors(self._settings):
                    if self._layout is Layout.PARTITIONS:
                        await self._partitions.ensure(connection, days)
                    yield connection
            except BaseException as error:
                # a task that was cancelled leaves a statement running: only a plain refusal leaves the session usable
                if not isinstance(error, StoreQueryError) or connection.closed:
                    await self.close()
                raise


def _prepare(
    batches: Sequence[TickBatch],
) -> tuple[list[BatchResult | None], list[TickBatch], set[date], bytes]:
    """Return the verdict on each batch, those to be stored (each id once), the days of their ticks, and their bytes."""
    judged = judge(batches)
    wanted: dict[int, TickBatch] = {}
    for batch, refused in zip(batches, judged, strict=True):
        if refused is None:
            wanted.setdefault(batch.batch_id, batch)
    chosen = list(wanted.values())
    if not chosen:
        return judged, [], set(), b""
    return judged, chosen, days_of(batch.frame for batch in chosen), transaction.encode(chosen)


def _check_kept(days: int) -> None:
    if days < MIN_KEPT_DAYS:
        raise BadRange(f"ticks of the last {MIN_KEPT_DAYS} days must be kept, not of {days}: they may come again")

"""What a batch must be before the store takes it: pure, and quick where nothing is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl

from market_pipeline.market.ticks import (
    STORED_TICK_SCHEMA,
    InvalidTicks,
    check_tick_columns,
    validate_ticks,
)
from market_pipeline.stores.ticks.batch import BatchResult, Outcome, TickBatch

MAX_BATCH_ID = 2**63 - 1
MAX_EPOCH = 2**63 - 1
# A time so far ahead is wrong, and so is a batch of so many days; every day that a tick names costs a partition.
MAX_FUTURE = timedelta(days=1)
MAX_DAYS = 31
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


def judge(batches: Sequence[TickBatch]) -> list[BatchResult | None]:
    """Return EMPTY for a heartbeat, REJECTED with the reason for what is no batch of ticks, None for the rest."""
    until = datetime.now(UTC) + MAX_FUTURE
    # batches are small and many: one look at all their rows is far cheaper than a look at each
    if _all_are_good([batch for batch in batches if batch.rows], until):
        return [None if batch.rows else BatchResult(batch.batch_id, Outcome.EMPTY) for batch in batches]
    return [_result(batch, until) for batch in batches]


def days_of(frames: Iterable[pl.DataFrame]) -> set[date]:
    """Return the UTC days of the ticks."""
    return set(pl.concat([frame.get_column("ts") for frame in frames]).dt.date().unique().to_list())


def _all_are_good(batches: Sequence[TickBatch], until: datetime) -> bool:
    if not batches:
        return True
    if not all(_ids_are_good(batch) and batch.frame.schema == STORED_TICK_SCHEMA for batch in batches):
        return False
    whole = pl.concat([batch.frame for batch in batches], rechunk=True)
    try:
        validate_ticks(whole, where="ticks")
    except InvalidTicks:
        return False
    rows = np.array([batch.rows for batch in batches])
    starts = np.cumsum(rows) - rows
    of_batch = np.repeat(np.arange(len(batches)), rows)
    ids = np.array([batch.batch_id for batch in batches], dtype=np.uint64)
    ts = whole.get_column("ts").to_physical().to_numpy()
    first, last = np.minimum.reduceat(ts, starts), np.maximum.reduceat(ts, starts)
    return bool(
        (whole.get_column("batch_id").to_numpy() == ids[of_batch]).all()
        and (whole.get_column("n").to_numpy() == np.arange(len(whole)) - starts[of_batch]).all()
        and (whole.get_column("symbol") == pl.Series([batch.symbol for batch in batches]).gather(of_batch)).all()
        and first.min() >= _ms(EARLIEST)
        and last.max() <= _ms(until)
        and (last - first).max() < MAX_DAYS * 86_400_000
    )


def _result(batch: TickBatch, until: datetime) -> BatchResult | None:
    if not batch.rows:
        return BatchResult(batch.batch_id, Outcome.EMPTY)
    try:
        _judge(batch, until)
    except InvalidTicks as error:
        return BatchResult(batch.batch_id, Outcome.REJECTED, str(error))
    return None


def _ids_are_good(batch: TickBatch) -> bool:
    texts = (batch.symbol, batch.collector_id, batch.session_id, batch.correlation_id)
    return (
        1 <= batch.batch_id <= MAX_BATCH_ID
        and 0 <= batch.epoch <= MAX_EPOCH
        and not any("\0" in text for text in texts)
    )


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _judge(batch: TickBatch, until: datetime) -> None:
    where = f"batch {batch.batch_id}"
    if not _ids_are_good(batch):
        raise InvalidTicks(
            f"{where} of epoch {batch.epoch}: ids must lie in 1 … {MAX_BATCH_ID}, epochs in 0 … {MAX_EPOCH}, and no id "
            "may hold a NUL"
        )
    frame = batch.frame
    if frame.schema != STORED_TICK_SCHEMA:
        check_tick_columns(frame, STORED_TICK_SCHEMA, where=where)
        raise InvalidTicks(f"{where}: its columns must be those of STORED_TICK_SCHEMA, in order")
    validate_ticks(frame, where=where)
    for name, said in (("symbol", batch.symbol), ("batch_id", batch.batch_id)):
        if not frame.get_column(name).eq_missing(said).all():
            raise InvalidTicks(f"{where}: the batch is of {name} {said}, its rows are not")
    if not np.array_equal(frame.get_column("n").to_numpy(), np.arange(batch.rows)):
        raise InvalidTicks(f"{where}: n is not the row's place in the batch")
    if batch.first_ts < EARLIEST or batch.last_ts > until:
        raise InvalidTicks(
            f"{where}: ts from {batch.first_ts} to {batch.last_ts} cannot be, it is {until - MAX_FUTURE}"
        )
    if (batch.last_ts - batch.first_ts).days and len(days_of([frame])) > MAX_DAYS:
        raise InvalidTicks(f"{where}: its ticks are of more than {MAX_DAYS} days")

"""What a batch must be before the store takes it: pure, and quick where nothing is wrong."""

from __future__ import annotations

from collections.abc import Sequence
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
    full = [batch.frame for batch in batches if batch.rows and batch.frame.schema == STORED_TICK_SCHEMA]
    try:
        # one pass over all is far cheaper than one each; only where something is wrong must it be found
        validate_ticks(pl.concat(full) if full else pl.DataFrame(schema=STORED_TICK_SCHEMA), where="ticks")
        values_are_good = True
    except InvalidTicks:
        values_are_good = False
    results: list[BatchResult | None] = []
    for batch in batches:
        if not batch.rows:
            results.append(BatchResult(batch.batch_id, Outcome.EMPTY))
            continue
        try:
            _judge(batch, until, values_are_good)
            results.append(None)
        except InvalidTicks as error:
            results.append(BatchResult(batch.batch_id, Outcome.REJECTED, str(error)))
    return results


def days_of(frame: pl.DataFrame) -> set[date]:
    """Return the UTC days of the ticks."""
    return set(frame.get_column("ts").dt.date().unique().to_list())


def _judge(batch: TickBatch, until: datetime, values_are_good: bool) -> None:
    where = f"batch {batch.batch_id}"
    if not 1 <= batch.batch_id <= MAX_BATCH_ID:
        raise InvalidTicks(f"{where}: a batch id must lie in 1 … {MAX_BATCH_ID}")
    if not 0 <= batch.epoch <= MAX_EPOCH:
        raise InvalidTicks(f"{where}: the epoch {batch.epoch} must lie in 0 … {MAX_EPOCH}")
    if "\0" in f"{batch.symbol}{batch.collector_id}{batch.session_id}{batch.correlation_id}":
        raise InvalidTicks(f"{where}: an id holds a NUL")
    frame = batch.frame
    if frame.schema != STORED_TICK_SCHEMA:
        check_tick_columns(frame, STORED_TICK_SCHEMA, where=where)
        raise InvalidTicks(f"{where}: its columns must be those of STORED_TICK_SCHEMA, in order")
    if not values_are_good:
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
    if (batch.last_ts - batch.first_ts).days and len(days_of(frame)) > MAX_DAYS:
        raise InvalidTicks(f"{where}: its ticks are of more than {MAX_DAYS} days")

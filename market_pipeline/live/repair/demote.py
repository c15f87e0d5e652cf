"""Live bars that say they are complete and lack a tick that came too late: called incomplete, so that they give way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import polars as pl
import structlog

from market_pipeline.bus.envelope import encode_batches
from market_pipeline.bus.losses import LossInterval
from market_pipeline.history.reports import SeriesCounts
from market_pipeline.history.runtime import Runtime
from market_pipeline.live.repair.losses import lost_minutes
from market_pipeline.market.bars import BAR_SCHEMA, LIVE_AGGREGATED
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import MILLISECOND, to_ms

log = structlog.get_logger(__name__)


def complete_though_late(rt: Runtime, instrument: Instrument, losses: Sequence[LossInterval]) -> pl.DataFrame:
    """Return the live bars of a symbol (STORED_SCHEMA) that say they are complete, in minutes of its `late` losses.

    The aggregator itself calls them incomplete for as long as it remembers a bar: not after a restart, nor for a tick
    an hour late. As complete ones they would win over whatever the vendor is asked for. Blocking.
    """
    late = lost_minutes([loss for loss in losses if loss.cause == "late"], [])
    if not late:
        return pl.DataFrame()
    first, last = late[0][0], late[-1][1] - MILLISECOND
    stored = rt.bars.stored_rows(instrument.key, "1m", LIVE_AGGREGATED, first, last)
    touched = pl.any_horizontal((pl.col("ts") >= start) & (pl.col("ts") < end) for start, end in late)
    return stored.filter(pl.col("complete") & touched)


async def demote(rt: Runtime, instrument: Instrument, bars: pl.DataFrame) -> None:
    """Publish stored bars of a symbol as incomplete; returns once they are stored so.

    Raises:
        BusError, StoreError, HistoryError: to be tried again.
    """
    demoted = bars.with_columns(
        complete=pl.lit(False),
        revision=pl.max_horizontal(pl.lit(to_ms(rt.clock()), pl.UInt64), pl.col("revision") + 1),
    ).select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())
    batches = await asyncio.to_thread(encode_batches, demoted, correlation_id=rt.run_id, run_id=rt.run_id)
    await rt.tracker.settle(batches, counts=SeriesCounts())
    log.info("live_demoted", symbol=instrument.symbol, minutes=demoted.height)

"""Ticks to batches."""

from __future__ import annotations

import polars as pl

from market_pipeline.bus.tick_envelope import EncodedTicks, TickHeaders, encode_tick_batch, new_batch_id
from market_pipeline.live.collector.lanes import Lane, Session
from market_pipeline.market.ticks import TICK_SCHEMA, empty_ticks
from market_pipeline.market.timeframes import from_ms
from market_pipeline.vendors.polygon.stream import StreamTick

# The fields of a StreamTick as columns; its times are epoch ms.
_COLUMNS = {
    "symbol": pl.String(),
    "ts": pl.Int64(),
    "kind": pl.String(),
    "bid": pl.Float64(),
    "ask": pl.Float64(),
    "price": pl.Float64(),
    "size": pl.Float64(),
    "exchange": pl.String(),
    "conditions": pl.String(),
    "received_at": pl.Int64(),
}


def tick_frame(ticks: list[StreamTick]) -> pl.DataFrame:
    """Return ticks as a frame with the columns of TICK_SCHEMA, in their order."""
    if not ticks:
        return empty_ticks()
    # Column by column: a few ticks at a time, an expression would take longer than all the rest.
    columns = [
        pl.Series(name, column, dtype=dtype)
        for (name, dtype), column in zip(_COLUMNS.items(), zip(*ticks, strict=True), strict=True)
    ]
    return pl.DataFrame([column.cast(TICK_SCHEMA[column.name]) for column in columns])


def tick_batch(
    lane: Lane, session: Session, ticks: list[StreamTick], *, collector_id: str, epoch: int, now_ms: int
) -> EncodedTicks:
    """Make the next batch of a lane, or without ticks its heartbeat."""
    alive_ms = lane.alive_ms(session)
    lane.batches += 1
    headers = TickHeaders(
        batch_id=new_batch_id(),
        correlation_id=f"{session.id}:{lane.symbol}:{lane.batches}",
        symbol=lane.symbol,
        collector_id=collector_id,
        epoch=epoch,
        rows=len(ticks),
        session_id=session.id,
        session_started=from_ms(alive_ms if session.started_ms is None else session.started_ms),
        alive_at=from_ms(alive_ms),
        lost_from=None if session.lost_from_ms is None else from_ms(session.lost_from_ms),
        stages={"received": ticks[0].received_ms if ticks else now_ms},
    )
    return encode_tick_batch(tick_frame(ticks), headers)

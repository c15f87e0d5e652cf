"""Ticks to batches."""

from __future__ import annotations

from market_pipeline.bus.envelope import new_batch_id
from market_pipeline.bus.tick_envelope import EncodedTicks, TickHeaders, usual_correlation_id
from market_pipeline.live.collector.lanes import Lane, Session
from market_pipeline.market.timeframes import from_ms
from market_pipeline.tick_payload import encode_columns
from market_pipeline.vendors.polygon.stream import StreamTick

# The fields of a StreamTick, in their order, under the names of a tick's columns.
_FIELDS = ("symbol", "ts", "kind", "bid", "ask", "price", "size", "exchange", "conditions", "received_at")


def tick_batch(
    lane: Lane, session: Session, ticks: list[StreamTick], *, collector_id: str, epoch: int, now_ms: int
) -> EncodedTicks:
    """Make the next batch of a lane, or without ticks its heartbeat."""
    alive_ms = lane.alive_ms(session)
    lane.batches += 1
    batch_id = new_batch_id()
    first_ts = last_ts = None
    payload = b""
    if ticks:
        # Not by way of a frame: it would take many times as long as its few rows.
        columns = dict(zip(_FIELDS, zip(*ticks, strict=True), strict=True))
        payload = encode_columns(lane.symbol, batch_id, columns)
        first_ts, last_ts = from_ms(min(columns["ts"])), from_ms(max(columns["ts"]))
    headers = TickHeaders(
        batch_id=batch_id,
        correlation_id=usual_correlation_id(batch_id),
        symbol=lane.symbol,
        collector_id=collector_id,
        epoch=epoch,
        rows=len(ticks),
        session_id=session.id,
        session_started=from_ms(alive_ms if session.started_ms is None else session.started_ms),
        alive_at=from_ms(alive_ms),
        first_ts=first_ts,
        last_ts=last_ts,
        lost_from=None if session.lost_from_ms is None else from_ms(session.lost_from_ms),
        number=lane.batches,  # a lane lives for one epoch
        stages={"received": ticks[0].received_ms if ticks else now_ms},
    )
    return EncodedTicks(headers, payload)

"""Minutes from stored ticks: read by chunks, folded as in live time, published and verified like any other bar.

A bar of stored ticks is complete only where that is proven. The tick store keeps which sessions sent what and where
ticks were lost, not every sign of life, so the proof is narrower than live time's: the minute must lie between two
ticks of one session, and touch no recorded loss: of the tick store, of the collector, or of the gap ledger, in which a
loss stands even after it has been repaired. It must have settled, so that a batch on its way is in. A batch that the
tick store refused (rejected to dead letters) is the one loss that none of these knows.

A minute whose ticks are gone keeps its bar: what retention drops was no error of the bar. So nothing is withdrawn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import polars as pl
import structlog

from market_pipeline.bus.envelope import encode_batches, now_ms
from market_pipeline.bus.losses import LossBucket
from market_pipeline.history.coverage import due_until
from market_pipeline.history.progress import Meter
from market_pipeline.history.reports import SymbolAggregate
from market_pipeline.history.runtime import Runtime
from market_pipeline.history.wanted import Interval, minutes_of
from market_pipeline.market.bars import HISTORICAL_AGGREGATED, split_valid
from market_pipeline.market.gaps import LOST
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.tick_minutes import MINUTE, aggregated_bars, minutes_of_ticks, proven_minutes
from market_pipeline.market.timeframes import floor, to_ms
from market_pipeline.stores.gap_merge import CONFIRMED, STATES
from market_pipeline.stores.ticks import TickReader

log = structlog.get_logger(__name__)

CHUNK = timedelta(hours=4)
"""Ticks of so much time are in memory at once: some hundred thousand of a busy pair."""
MARGIN = timedelta(hours=1)
"""How far around a chunk the batches of a session are looked for, to see that it spans the chunk's bounds."""


async def aggregate_symbol(
    rt: Runtime,
    reader: TickReader,
    instrument: Instrument,
    intervals: Sequence[Interval],
    report: SymbolAggregate,
    meter: Meter,
) -> list[Interval]:
    """Make one symbol's minutes of its ticks; return the intervals that have some, to be derived.

    Raises:
        StoreError: the tick store or ClickHouse.
        VerificationFailed, HistoryError: what was published is not in the store.
    """
    losses = [(loss.start, loss.end) for loss in await LossBucket(rt.bus).all() if loss.symbol == instrument.key]
    made: list[Interval] = []
    for start, end in _chunks(intervals, rt.clock()):
        frame, ticks = await asyncio.to_thread(_fold, rt, reader, instrument, (start, end), losses)
        report.ticks += ticks
        if frame.height:
            made.append((start, end))
            report.minutes += frame.height
            report.complete += int(frame["complete"].sum())
            stages = {"decoded": now_ms()}
            batches = await asyncio.to_thread(
                encode_batches, frame, correlation_id=rt.run_id, run_id=rt.run_id, stages=stages
            )
            await rt.tracker.settle(batches, counts=report.counts)
        meter.advance(instrument.symbol, minutes=minutes_of([(start, end)]), rows=frame.height)
    log.info("aggregated", symbol=instrument.symbol, ticks=report.ticks, minutes=report.minutes)
    return made


def _chunks(intervals: Sequence[Interval], now: datetime) -> list[Interval]:
    """Cut the intervals at whole chunks, up to the last minute that has ended."""
    out: list[Interval] = []
    until = floor(now, "1m")
    for start, end in intervals:
        while start < min(end, until):
            cut = min(end, until, floor(start, "4h") + CHUNK)
            out.append((start, cut))
            start = cut
    return out


def _fold(
    rt: Runtime, reader: TickReader, instrument: Instrument, span: Interval, losses: Sequence[Interval]
) -> tuple[pl.DataFrame, int]:
    """Return the bars (BAR_SCHEMA) of a chunk and the number of its ticks."""
    start, end = span
    key, now = instrument.key, rt.clock()
    ticks = reader.ticks(key, start, end)
    minutes = minutes_of_ticks(ticks, instrument, ahead=rt.settings.live.ahead)
    sessions = reader.session_spans(key, start - MARGIN, end + MARGIN).select("first_ts", "last_ts").rows()
    known = [*losses, *reader.losses(key, start, end).select("start", "end").rows()]
    gaps = rt.gaps.table([key], start, end, states=STATES)
    lost = gaps.filter((pl.col("cause") == LOST) | (pl.col("state") == CONFIRMED))
    known += lost.select("start_ts", "end_ts").rows()
    due = due_until(now, rt.settings.history)
    proven = proven_minutes(minutes["ts"], sessions, known) & (minutes["ts"] + MINUTE <= due)
    newest = rt.facts.max_revision(key, "1m", HISTORICAL_AGGREGATED, start, end)
    bars = aggregated_bars(minutes, key, proven, max(to_ms(now), newest + 1))
    good, bad = split_valid(bars)
    if bad.height:
        log.warning("aggregated_bars_malformed", symbol=instrument.symbol, rows=bad.height, first=bad["reason"][0])
    return good, ticks.height

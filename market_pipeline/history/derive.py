"""Bars of 5m and more: one pure function of the winning minutes, published and verified like any other bar."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import polars as pl

from market_pipeline.bus.envelope import encode_batches, now_ms
from market_pipeline.history.progress import Meter
from market_pipeline.history.reports import DeriveReport, SeriesCounts
from market_pipeline.history.runtime import Runtime
from market_pipeline.history.wanted import Interval, minutes_of
from market_pipeline.market.aggregation import derive
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.sessions import calendar
from market_pipeline.market.timeframes import ceil, floor, timeframe

CHUNK = timedelta(weeks=52)
"""How much of a symbol is read and folded at once: bounds the memory, whatever the range."""


async def derive_symbol(
    rt: Runtime,
    instrument: Instrument,
    intervals: Sequence[Interval],
    timeframes: Sequence[str],
    report: DeriveReport,
    meter: Meter,
) -> None:
    """Derive every window of `timeframes` that shares a minute with the intervals.

    Raises:
        VerificationFailed, HistoryError: what was published is not in the store.
    """
    verifying: list[asyncio.Task[None]] = []
    try:
        for start, end in _chunks(intervals):
            frames = await asyncio.to_thread(_fold, rt, instrument, start, end, timeframes, report)
            while len(verifying) >= 2:
                await verifying.pop(0)
            verifying.append(asyncio.create_task(_store(rt, instrument, frames, (start, end), report, meter)))
        for task in verifying:
            await task
    finally:
        for task in verifying:
            task.cancel()


def _chunks(intervals: Sequence[Interval]) -> list[Interval]:
    """Cut the intervals at week bounds into pieces of at most CHUNK, so that no window is folded twice."""
    out: list[Interval] = []
    for start, end in intervals:
        while start < end:
            cut = min(end, floor(start, "1w") + CHUNK)
            out.append((start, cut))
            start = cut
    return out


def _fold(
    rt: Runtime, instrument: Instrument, start: datetime, end: datetime, timeframes: Sequence[str], report: DeriveReport
) -> dict[str, pl.DataFrame]:
    """Read the minutes of every window touched, once, and fold them into all timeframes."""
    widest = max(timeframes, key=lambda code: timeframe(code).seconds)
    # A week touched at its edge needs all of its days; shorter windows lie inside whole days.
    first, last = floor(start, widest), ceil(end, widest)
    # Revisions first: read after the minutes they could lend a newer revision to older values.
    revisions = rt.bars.window_revisions(instrument.key, first, last)
    minutes = rt.bars.winners(instrument.key, "1m", first, last)
    report.minutes_read += minutes.height
    frames = derive(
        minutes,
        revisions,
        list(timeframes),
        calendar(instrument.calendar),
        rt.clock(),
        symbol=instrument.key,
        weakest_first=rt.settings.history.precedence[::-1],
    )
    return {
        code: frame.filter((pl.col("ts") >= floor(start, code)) & (pl.col("ts") < end))
        for code, frame in frames.items()
    }


async def _store(
    rt: Runtime,
    instrument: Instrument,
    frames: dict[str, pl.DataFrame],
    span: Interval,
    report: DeriveReport,
    meter: Meter,
) -> None:
    async def one(code: str, frame: pl.DataFrame) -> None:
        counts = SeriesCounts()
        stamp = now_ms()
        batches = await asyncio.to_thread(
            encode_batches, frame, correlation_id=rt.run_id, run_id=rt.run_id, stages={"derived": stamp}
        )
        await rt.tracker.settle(batches, counts=counts)
        report.by_symbol.setdefault((instrument.key, code), SeriesCounts()).add(counts)
        report.timeframes.setdefault(code, SeriesCounts()).add(counts)
        days = count_days(frame.filter(pl.col("is_deleted") == 0))
        known = report.days.get((instrument.key, code))
        report.days[(instrument.key, code)] = days if known is None else _joined_days(known, days)

    await asyncio.gather(*(one(code, frame) for code, frame in frames.items() if frame.height))
    meter.advance(instrument.symbol, minutes=minutes_of([span]), rows=sum(f.height for f in frames.values()))


def count_days(bars: pl.DataFrame) -> pl.DataFrame:
    """Return frame[date, rows, complete] of derived bars (ts, complete); a week counts at its Sunday."""
    return bars.group_by(date=pl.col("ts").dt.date(), maintain_order=True).agg(
        rows=pl.len().cast(pl.UInt32), complete=pl.col("complete").sum().cast(pl.UInt32)
    )


def _joined_days(a: pl.DataFrame, b: pl.DataFrame) -> pl.DataFrame:
    """Join the days of two chunks; a week that both touched is counted once."""
    return pl.concat([a, b]).unique("date", keep="last", maintain_order=True).sort("date")

"""Find what is missing, ask for it, and derive again what it touches; a repair converges because the ledger counts.

Each gap comes to an end: its minutes come, or the vendor, asked `gap_attempts` times with success, is confirmed to have
none, or the question is refused or failed `gap_failures` times, and it is given up until somebody wants it asked again
(`retry_given_up`). A gap that an earlier look wrote (a load, live repair, the daily monitor) keeps its cause and its
attempts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import polars as pl
import structlog

from market_pipeline.history.asking import GapQuestions, request_ranges
from market_pipeline.history.coverage import account_days, due_until
from market_pipeline.history.derive import derive_symbol
from market_pipeline.history.progress import Meter
from market_pipeline.history.reports import RepairReport, SymbolLoad
from market_pipeline.history.runtime import Runtime
from market_pipeline.history.wanted import Interval, minutes_of, subtract
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import DERIVED, midnight
from market_pipeline.stores.gap_merge import CONFIRMED, GIVEN_UP, OPEN
from market_pipeline.stores.vendor_requests import merged

log = structlog.get_logger(__name__)


async def repair_symbol(
    rt: Runtime, instrument: Instrument, report: RepairReport, meter: Meter, *, retry_given_up: bool = False
) -> None:
    """Repair one symbol: scan what was ever asked for, ask once more for each open gap, derive what it touches.

    Gaps in what was never asked for are those that live repair or the daily monitor has found. Oldest first; minutes
    that may still come or change of themselves wait.

    Raises:
        RangeNotLoaded: naming the ranges that are missing; what else was asked for has landed and is derived.
    """
    asked = await asyncio.to_thread(
        rt.requests.asked,
        instrument.key,
        midnight(instrument.history_start),
        rt.clock(),
        settle=rt.settings.history.settle,
    )
    if asked:
        await asyncio.to_thread(account_days, rt, instrument, [], asked)
    asked_for = await asyncio.to_thread(
        open_until, rt, instrument, due_until(rt.clock(), rt.settings.history), retry_given_up
    )
    if not asked_for:
        await _derive_waiting(rt, instrument, report, meter)
        return
    minutes = minutes_of(asked_for)
    report.found_gaps += len(asked_for)
    report.found_minutes += minutes
    ranges = request_ranges(asked_for)
    log.info("repairing", symbol=instrument.symbol, gaps=len(asked_for), minutes=minutes, requests=len(ranges))
    load = report.load.symbols.setdefault(instrument.key, SymbolLoad(instrument.key))
    # Noted first: what has landed must be derived, whatever becomes of the rest, and of this process.
    await asyncio.to_thread(rt.underived.note, instrument.key, ranges)
    questions = GapQuestions(rt, instrument, load, meter)
    await questions.ask(asked_for)
    report.asked_requests += load.requests
    await _derive_waiting(rt, instrument, report, meter, load.unsettled)
    left = await asyncio.to_thread(minutes_left, rt, instrument, asked_for)
    report.still_open_minutes += left.open
    report.confirmed_minutes += left.confirmed
    report.given_up_minutes += left.given_up
    report.repaired_minutes += minutes - sum(left)
    log.info("repaired", symbol=instrument.symbol, minutes=minutes - sum(left), **left._asdict())
    if questions.failure is not None:
        raise questions.failure


async def _derive_waiting(
    rt: Runtime, instrument: Instrument, report: RepairReport, meter: Meter, unsettled: Sequence[Interval] = ()
) -> None:
    """Derive what this run has asked for, and what a run that ended too early has left to derive.

    What is `unsettled` waits on: a minute of it may land after this.
    """
    waiting = await asyncio.to_thread(rt.underived.waiting, instrument.key)
    if waiting.height:
        ranges = merged(waiting.select("start_ts", "end_ts").rows())
        await derive_symbol(rt, instrument, ranges, DERIVED, report.derived, meter)
        later = pl.any_horizontal(
            pl.lit(False), *((pl.col("start_ts") < end) & (pl.col("end_ts") > start) for start, end in unsettled)
        )
        await asyncio.to_thread(rt.underived.forget, instrument.key, waiting.filter(~later))


def open_until(rt: Runtime, instrument: Instrument, until: datetime, given_up: bool) -> list[Interval]:
    """Return what of the symbol's gaps that are open (or `given_up`, if wanted) lies before `until`, in order."""
    table = rt.gaps.table([instrument.key], None, until, states=(OPEN, GIVEN_UP) if given_up else (OPEN,))
    return [(start, min(end, until)) for start, end in table.select("start_ts", "end_ts").rows()]


class MinutesLeft(NamedTuple):
    """Minutes that are still missing, by the state of their gap."""

    open: int
    confirmed: int
    given_up: int


def minutes_left(rt: Runtime, instrument: Instrument, asked_for: Sequence[Interval]) -> MinutesLeft:
    """Return how many of the minutes asked for are still missing."""
    table = rt.gaps.table([instrument.key], asked_for[0][0], max(end for _, end in asked_for))
    left = []
    for state in (OPEN, CONFIRMED, GIVEN_UP):
        of_state = table.filter(pl.col("state") == state).select("start_ts", "end_ts").rows()
        left.append(minutes_of(asked_for) - minutes_of(subtract(asked_for, of_state)))
    return MinutesLeft(*left)

"""Find what is missing, ask for it, and derive again what it touches; a repair converges because the ledger counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import polars as pl
import structlog

from market_pipeline.history.coverage import account_days, gaps_within
from market_pipeline.history.derive import derive_symbol
from market_pipeline.history.load import load_symbol
from market_pipeline.history.progress import Meter
from market_pipeline.history.reports import RepairReport, SymbolLoad
from market_pipeline.history.runtime import Runtime
from market_pipeline.history.wanted import Interval, midnight
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import DERIVED

log = structlog.get_logger(__name__)

REQUEST_SPAN = timedelta(minutes=50_000)
"""One vendor request covers this much at most: gaps that fit into one are asked for together."""


async def repair_symbol(rt: Runtime, instrument: Instrument, report: RepairReport, meter: Meter) -> None:
    """Repair one symbol: scan what was ever asked for, ask once more for each open gap, derive what it touches."""
    asked = await asyncio.to_thread(
        rt.requests.asked,
        instrument.key,
        midnight(instrument.history_start),
        rt.clock(),
        settle=rt.settings.history.settle,
    )
    if not asked:
        return
    await asyncio.to_thread(account_days, rt, instrument, [], asked)
    open_gaps = await asyncio.to_thread(rt.gaps.open, [instrument.key])
    if open_gaps.height == 0:
        return
    asked_for = open_gaps.select("start_ts", "end_ts").rows()
    minutes = int(open_gaps["minutes"].sum())
    report.found_gaps += open_gaps.height
    report.found_minutes += minutes
    ranges = request_ranges(asked_for)
    log.info("repairing", symbol=instrument.symbol, gaps=open_gaps.height, minutes=minutes, requests=len(ranges))
    load = report.load.symbols.setdefault(instrument.key, SymbolLoad(instrument.key))
    await load_symbol(rt, instrument, ranges, load, meter)
    report.asked_requests += load.requests
    await derive_symbol(rt, instrument, ranges, DERIVED, report.derived, meter)
    after = gaps_within(await asyncio.to_thread(rt.gaps.table, [instrument.key]), asked_for)
    still = int(after.filter(pl.col("state") == "open")["minutes"].sum())
    confirmed = int(after.filter(pl.col("state") == "confirmed")["minutes"].sum())
    report.still_open_minutes += still
    report.confirmed_minutes += confirmed
    report.repaired_minutes += max(0, minutes - still - confirmed)
    log.info("repaired", symbol=instrument.symbol, minutes=minutes - still - confirmed, confirmed=confirmed, open=still)


def request_ranges(gaps: Sequence[Interval]) -> list[Interval]:
    """Join gaps, oldest first, into the ranges that one request each can cover."""
    out: list[Interval] = []
    for start, end in sorted(gaps):
        if out and end - out[-1][0] <= REQUEST_SPAN:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out

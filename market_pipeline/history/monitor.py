"""The daily look at all of history: the gap ledger brought into agreement with what is missing, symbol by symbol.

It asks the vendor for nothing: `repair_gaps` works on what it finds, oldest first, until each gap has a final state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

import polars as pl
import structlog

from market_pipeline.history.coverage import account_days, due_until, gaps_within
from market_pipeline.history.progress import Meter
from market_pipeline.history.reports import DAY_SCHEMA, MonitorReport
from market_pipeline.history.runtime import Runtime
from market_pipeline.history.wanted import Interval, minutes_of
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import DAY, midnight
from market_pipeline.stores.gap_merge import CONFIRMED, GIVEN_UP, OPEN
from market_pipeline.stores.vendor_requests import merged

log = structlog.get_logger(__name__)

APART = timedelta(days=35)
"""Stretches farther apart than this were loaded apart: what lies between them nobody has ever wanted."""
CHUNK = timedelta(days=366)


async def monitor_symbol(
    rt: Runtime, instrument: Instrument, report: MonitorReport, meter: Meter, *, whole: bool = False
) -> None:
    """Look at one symbol's history: from its first minute, stored or asked for, up to settle and lateness ago.

    Args:
        whole: all of that; by default only what belongs together (see `watched`).
    """
    spans = await asyncio.to_thread(watched, rt, instrument, whole=whole)
    if not spans:
        return
    days = [pl.DataFrame(schema=DAY_SCHEMA)]
    for start, end in _chunks(spans):
        some, _ = await asyncio.to_thread(account_days, rt, instrument, [], [(start, end)])
        days.append(some)
        meter.advance(instrument.symbol, minutes=minutes_of([(start, end)]), rows=int(some["rows"].sum()))
    counted = pl.concat(days).select(pl.col("rows", "expected", "missing").sum()).row(0, named=True)
    gaps = gaps_within(await asyncio.to_thread(rt.gaps.table, [instrument.key]), spans)

    def minutes(state: str) -> int:
        return int(gaps.filter(pl.col("state") == state)["minutes"].sum())

    report.rows.append(
        {
            "symbol": instrument.key,
            "start": spans[0][0],
            "end": spans[-1][1],
            "expected": counted["expected"],
            "missing": counted["missing"],
            "gaps": gaps.height,
            "open": minutes(OPEN),
            "confirmed": minutes(CONFIRMED),
            "given_up": minutes(GIVEN_UP),
            "unwatched": minutes_of([(spans[0][0], spans[-1][1])]) - minutes_of(spans),
        }
    )
    log.info("monitored", symbol=instrument.symbol, missing=counted["missing"], open=minutes(OPEN))


def watched(rt: Runtime, instrument: Instrument, *, whole: bool) -> list[Interval]:
    """Return the time in which a minute that is expected and not there is a gap, in order.

    That is what was ever asked for and what lies between stored bars, up to now; unless two stretches are farther
    apart than APART: whoever has loaded a month of 2014 and streams today has not asked for the years between. With
    `whole` they are watched too.
    """
    first_day, now = midnight(instrument.history_start), rt.clock()
    due = due_until(now, rt.settings.history)
    asked = rt.requests.asked(instrument.key, first_day, now, settle=rt.settings.history.settle)
    stored = rt.facts.span(instrument.key, "1m")
    held: list[Interval] = []
    if stored is not None:
        first, last, _ = stored
        dates = rt.facts.counts_by_day(instrument.key, "1m", first, last + DAY)["date"].to_list()
        held = [(max(midnight(day), first), midnight(day) + DAY) for day in dates]
    return joined([*asked, *held], due, None if whole else APART)


def joined(stretches: Sequence[Interval], due: datetime, apart: timedelta | None) -> list[Interval]:
    """Join stretches no farther apart than `apart` (None: all), and the last of them with the present, cut at `due`."""
    out: list[Interval] = []
    for start, end in [*merged(stretches), (due, due)]:
        if out and (apart is None or start - out[-1][1] <= apart):
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return [(start, min(end, due)) for start, end in out if start < min(end, due)]


def _chunks(spans: Sequence[Interval]) -> Iterator[Interval]:
    for start, end in spans:
        while start < end:
            cut = min(end, start + CHUNK)
            yield start, cut
            start = cut

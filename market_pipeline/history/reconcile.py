"""Live minutes held against the vendor's: both sources lie side by side in the store, and are read and compared there.

Which of them wins does not matter here: that is the precedence, a setting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import polars as pl
import structlog

from market_pipeline.history.derive import derive_symbol
from market_pipeline.history.load import load_symbol
from market_pipeline.history.progress import Meter
from market_pipeline.history.reports import ReconcileReport, SymbolLoad
from market_pipeline.history.runtime import Runtime
from market_pipeline.history.wanted import Interval
from market_pipeline.market.bars import LIVE_AGGREGATED, VENDOR_HISTORICAL
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.reconciliation import DIFFERENCE_SCHEMA, Counts, count, differences, reconcile
from market_pipeline.market.timeframes import DERIVED, MINUTE, floor
from market_pipeline.settings import LiveSettings, Settings
from market_pipeline.stores.bars import BarStore

log = structlog.get_logger(__name__)

MOST_DIFFERENCES = 1_000
"""Rows of the table of differences: the largest are kept."""
CHUNK = timedelta(days=31)
"""How much of a symbol is read and compared at once: bounds the memory, whatever the range."""


@dataclass
class Agreement:
    """What a comparison found: counts by symbol key, the largest differences, and how many values differ in all."""

    counts: dict[str, Counts] = field(default_factory=dict)
    table: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=DIFFERENCE_SCHEMA))
    values: int = 0


def settled_until(settings: Settings, now: datetime) -> datetime:
    """Return up to when minutes are compared: what is younger the vendor, or a late tick, may still change."""
    return floor(now - settings.history.settle - settings.history.lateness, "1m")


def live_spans(bars: BarStore, scope: Mapping[str, Sequence[Interval]], until: datetime) -> dict[str, list[Interval]]:
    """Return, of the intervals of each symbol key, the part between its first and its last live minute.

    Before and after, nothing says that live time was meant to be: what is missing there is a gap, not a disagreement.
    Symbols and intervals without a live minute are left out, and so is what lies after `until`.
    """
    asked: dict[Interval, list[str]] = {}
    for symbol, intervals in scope.items():
        for start, end in intervals:
            if start < min(end, until):
                asked.setdefault((start, min(end, until)), []).append(symbol)
    spans: dict[str, list[Interval]] = {}
    for (start, end), symbols in asked.items():
        found = bars.source_spans(symbols, "1m", LIVE_AGGREGATED, start, end)
        for symbol, first, last in found.iter_rows():
            spans.setdefault(symbol, []).append((first, last + MINUTE))
    return {symbol: sorted(intervals) for symbol, intervals in spans.items()}


def compare_stored(
    bars: BarStore, spans: Mapping[str, Sequence[Interval]], tolerances: LiveSettings, *, most: int = MOST_DIFFERENCES
) -> Agreement:
    """Compare the stored live minutes of the spans with the vendor's, within the settings' tolerances.

    Of the values that differ the `most` largest are kept in the table, whatever their number.
    """
    agreement = Agreement()
    for symbol, intervals in spans.items():
        counts = agreement.counts.setdefault(symbol, Counts())
        for start, end in _chunks(intervals):
            live, vendor = (
                bars.stored_rows(symbol, "1m", source, start, end - MINUTE)
                for source in (LIVE_AGGREGATED, VENDOR_HISTORICAL)
            )
            compared = reconcile(
                live,
                vendor,
                price_tolerance=tolerances.price_tolerance,
                volume_tolerance=tolerances.volume_tolerance,
            )
            counts.add(count(compared))
            found = differences(compared)
            agreement.values += found.height
            agreement.table = pl.concat([agreement.table, found.head(most)])
            if agreement.table.height > most:
                agreement.table = _largest(agreement.table, most)
    agreement.table = _largest(agreement.table, most)
    return agreement


async def fetch_symbol(
    rt: Runtime, instrument: Instrument, intervals: Sequence[Interval], report: ReconcileReport, meter: Meter
) -> None:
    """Load the vendor's minutes of the intervals beside the live ones, and derive again what that changes.

    Where live is incomplete, or ranked lower, the vendor's minute becomes the winner, so that the windows it touches
    are no longer the fold of their minutes.

    Raises:
        RangeNotLoaded, VerificationFailed, HistoryError: as a load and a derivation.
    """
    load = report.load.symbols.setdefault(instrument.key, SymbolLoad(instrument.key))
    await load_symbol(rt, instrument, intervals, load, meter)
    if load.counts.written:
        await derive_symbol(rt, instrument, intervals, DERIVED, report.derived, meter)


async def judge(rt: Runtime, spans: Mapping[str, Sequence[Interval]], report: ReconcileReport) -> None:
    """Compare what is stored now and put the result into the report."""
    agreement = await asyncio.to_thread(compare_stored, rt.bars, spans, rt.settings.live)
    report.counts, report.differing, report.values = agreement.counts, agreement.table, agreement.values
    report.winner = winner(rt.settings)
    for symbol, counts in agreement.counts.items():
        log.info(
            "reconciled",
            symbol=symbol,
            compared=counts.compared,
            differ=counts.differ,
            only_live=counts.only_live,
            only_vendor=counts.only_vendor,
            live_incomplete=counts.live_incomplete,
        )


def winner(settings: Settings) -> str:
    """Return which of the two sources wins where both have a complete minute."""
    return min(LIVE_AGGREGATED, VENDOR_HISTORICAL, key=settings.history.precedence.index)


def _largest(table: pl.DataFrame, most: int) -> pl.DataFrame:
    return table.sort("difference", "symbol", "ts", "column", descending=[True, False, False, False]).head(most)


def _chunks(intervals: Sequence[Interval]) -> Iterator[Interval]:
    for start, end in intervals:
        while start < end:
            stop = min(end, start + CHUNK)
            yield start, stop
            start = stop

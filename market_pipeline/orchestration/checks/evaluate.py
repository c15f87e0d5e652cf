"""Read what a check needs from the stores, and let its rules judge it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl

from market_pipeline.market.gaps import missing_minutes
from market_pipeline.market.instruments import Instrument, Instruments
from market_pipeline.market.sessions import calendar
from market_pipeline.market.timeframes import TIMEFRAMES, ceil, floor, midnight
from market_pipeline.orchestration.checks.agreement_rules import differences, judge_agreement
from market_pipeline.orchestration.checks.freshness_rules import judge_freshness
from market_pipeline.orchestration.checks.gap_rules import GAP_SCHEMA, OPEN, judge_gaps, unexplained_runs
from market_pipeline.orchestration.checks.live_rules import judge_live
from market_pipeline.orchestration.checks.sanity_rules import judge_sanity
from market_pipeline.orchestration.checks.scope import Scope, chunks, clipped, to_scope
from market_pipeline.orchestration.checks.verdict import Verdict
from market_pipeline.orchestration.wanted import Wanted
from market_pipeline.settings import HistorySettings, Settings

if TYPE_CHECKING:
    from market_pipeline.stores import Stores

CHUNK = timedelta(days=366)
MOST_IMPLAUSIBLE = 1_000
_AGREEMENT_COLUMNS = ("symbol", "ts", "open", "high", "low", "close", "volume", "vwap", "trades")


def evaluate_gaps(
    stores: Stores, instruments: Instruments, settings: HistorySettings, now: datetime, days: Wanted | None
) -> Verdict:
    """Look for expected minutes that the store lacks.

    The days of the run are compared minute by minute with the calendar (`days` None: everything that the vendor was
    ever asked for); of all other ranges the gap ledger tells. Minutes younger than settle and lateness are not yet due.
    """
    due = now - settings.settle - settings.lateness
    scope = clipped(asked_ranges(stores, instruments, settings, now) if days is None else to_scope(days), due)
    standing = stores.gaps.table(instruments.keys).rename({"start_ts": "start", "end_ts": "end"})
    # What live repair found reaches up to the present: the part of it that is due counts.
    until = ceil(due, "1m")
    known = _ending(standing, pl.lit(until))
    # What live repair has found is asked for a little later: until then it is neither explained nor a fault.
    unasked = (pl.col("state") == OPEN) & (pl.col("attempts") == 0)
    counted = _ending(known, pl.when(unasked).then(pl.lit(until - settings.lateness)).otherwise(pl.lit(until)))
    found = [counted.select(list(GAP_SCHEMA)).cast(GAP_SCHEMA)]
    for symbol, intervals in scope.items():
        market = calendar(instruments.get(symbol).calendar)
        ledger = known.filter(pl.col("symbol") == symbol)
        for start, end in chunks(intervals, CHUNK):
            present = stores.bars.winners(symbol, "1m", start, end, ["ts"])["ts"]
            found.append(unexplained_runs(symbol, missing_minutes(present, market, start, end), ledger))
    return judge_gaps(pl.concat(found), {i.key: i.thin_run for i in instruments}, partition_of(instruments))


def evaluate_sanity(
    stores: Stores, instruments: Instruments, settings: HistorySettings, now: datetime, days: Wanted | None
) -> Verdict:
    """Look for minutes that cannot be true of a market, in the days of the run or in all that was asked for."""
    scope = clipped(asked_ranges(stores, instruments, settings, now) if days is None else to_scope(days), now)
    bad: list[pl.DataFrame] = []
    for symbol, intervals in scope.items():
        for start, end in chunks(intervals, CHUNK):
            room = MOST_IMPLAUSIBLE - sum(frame.height for frame in bad)
            if room > 0:
                bad.append(stores.bars.implausible([symbol], ["1m"], start, end, limit=room))
    frame = pl.concat(bad) if bad else pl.DataFrame()
    checked = "the days of this run" if days is not None else "all that was ever asked for"
    return judge_sanity(frame, checked=checked, partitions=partition_of(instruments))


def evaluate_freshness(
    stores: Stores, instruments: Instruments, followed: Sequence[Instrument], now: datetime
) -> Verdict:
    """Judge the newest minute of every symbol."""
    last = stores.bars.latest(instruments.keys, "1m")
    keys = {instrument.key for instrument in followed}
    others = [instrument.symbol for instrument in instruments if instrument.key not in keys]
    by_symbol = dict(zip(last["symbol"].to_list(), last["ts"].to_list(), strict=True))
    by_symbol |= {instruments.get(key).symbol: ts for key, ts in by_symbol.items()}
    return judge_freshness(followed, others, by_symbol, now)


def evaluate_agreement(
    stores: Stores, timeframes: Iterable[str], days: Wanted, *, sampled: bool, settings: HistorySettings, now: datetime
) -> dict[str, Verdict]:
    """Compare stored derived bars of some days with the fold of their stored parents; return a verdict a timeframe."""
    closed_at = now - settings.settle

    @functools.cache  # most timeframes are read twice: as a child, and as a parent
    def read(symbol: str, code: str, start: datetime, end: datetime) -> pl.DataFrame:
        return stores.bars.winners(symbol, code, start, end, _AGREEMENT_COLUMNS)

    verdicts: dict[str, Verdict] = {}
    for code in timeframes:
        parent = TIMEFRAMES[code].parent_code
        assert parent is not None
        found: list[pl.DataFrame] = []
        windows = 0
        for symbol, ranges in days.items():
            for first, last in ranges:
                start, end = floor(midnight(first), code), ceil(midnight(last), code)
                child = read(symbol, code, start, end)
                windows += child.height
                found.append(differences(read(symbol, parent, start, end), child, code, closed_at))
        verdicts[code] = judge_agreement(code, found, windows, "a sample of the days" if sampled else "every day")
    return verdicts


def evaluate_live(stores: Stores, instruments: Instruments, settings: Settings, now: datetime, days: Wanted) -> Verdict:
    """Compare the stored live minutes of some days with the vendor's, as far as they are settled."""
    # the history room's clients take a second to import: a run waits for them, the UI must not
    from market_pipeline.history.reconcile import compare_stored, live_spans, settled_until, winner

    scope = {instruments.get(symbol).key: intervals for symbol, intervals in to_scope(days).items()}
    spans = live_spans(stores.bars, scope, settled_until(settings, now))
    found = compare_stored(stores.bars, spans, settings.live)
    return judge_live(found.counts, found.table, found.values, winner(settings))


def asked_ranges(stores: Stores, instruments: Instruments, settings: HistorySettings, now: datetime) -> Scope:
    """Return what the vendor was ever asked for with success, by symbol."""
    asked = {
        i.key: stores.requests.asked(i.key, midnight(i.history_start), now, settle=settings.settle) for i in instruments
    }
    return {symbol: list(intervals) for symbol, intervals in asked.items() if intervals}


def _ending(gaps: pl.DataFrame, until: pl.Expr) -> pl.DataFrame:
    """Return the parts of the gaps (start, end, minutes) that lie before a time; gaps without one are left out."""
    cut = gaps.with_columns(end=pl.min_horizontal("end", until)).filter(pl.col("start") < pl.col("end"))
    return cut.with_columns(minutes=(pl.col("end") - pl.col("start")).dt.total_minutes())


def partition_of(instruments: Instruments) -> Mapping[str, str]:
    """Return the instrument partition of each symbol key."""
    return {instrument.key: instrument.partition for instrument in instruments}

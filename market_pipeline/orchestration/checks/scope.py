"""What a check looks at: the days of its run, or, in a run without partitions, what was ever asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from market_pipeline.market.instruments import Instruments
from market_pipeline.market.timeframes import midnight
from market_pipeline.orchestration.partitions import BarPartitions
from market_pipeline.orchestration.run_identity import partition_keys_of
from market_pipeline.orchestration.wanted import Wanted, ranges_of, wanted_days, wanted_weeks

Interval = tuple[datetime, datetime]
"""Half-open, UTC."""
Scope = dict[str, list[Interval]]
"""Symbol key -> intervals, in order."""


def run_days(run: dg.DagsterRun, partitions: BarPartitions, *, weekly: bool = False) -> Wanted | None:
    """Return the days that a run's partitions hold, or None for a run without partitions."""
    keys = partition_keys_of(run, partitions.weekly if weekly else partitions.daily)
    if keys is None:
        return None
    to_days = wanted_weeks if weekly else wanted_days
    return to_days(keys, partitions.instruments, datetime.now(UTC).date())


def last_days(instruments: Instruments, today: date) -> Wanted:
    """Return yesterday and today of every instrument whose history has begun."""
    return {
        instrument.key: [(max(today - timedelta(days=1), instrument.history_start), today + timedelta(days=1))]
        for instrument in instruments
        if instrument.history_start <= today
    }


def to_scope(wanted: Wanted) -> Scope:
    """Return ranges of days as intervals."""
    return {symbol: [(midnight(start), midnight(end)) for start, end in ranges] for symbol, ranges in wanted.items()}


def clipped(scope: Mapping[str, Sequence[Interval]], until: datetime) -> Scope:
    """Return the scope without what lies after `until`; symbols of which nothing remains are left out."""
    kept = {
        symbol: [(start, min(end, until)) for start, end in intervals if start < until]
        for symbol, intervals in scope.items()
    }
    return {symbol: intervals for symbol, intervals in kept.items() if intervals}


def chunks(intervals: Sequence[Interval], length: timedelta) -> list[Interval]:
    """Return the intervals cut into pieces of at most `length`, so that memory is bounded whatever the range."""
    pieces: list[Interval] = []
    for start, end in intervals:
        while start < end:
            stop = min(end, start + length)
            pieces.append((start, stop))
            start = stop
    return pieces


def sample_days(wanted: Wanted, newest: int, spread: int) -> tuple[Wanted, bool]:
    """Return of each symbol the newest days and some spread over the others, and whether that is less than asked for.

    The spread is even and always the same for the same range, so that a difference found once is found again.
    """
    sample: Wanted = {}
    cut = False
    for symbol, ranges in wanted.items():
        days = [start + timedelta(days=n) for start, end in ranges for n in range((end - start).days)]
        if len(days) > newest + spread:
            cut = True
            older = days[:-newest]
            days = [older[n * len(older) // spread] for n in range(spread)] + days[-newest:]
        sample[symbol] = ranges_of(days)
    return sample, cut

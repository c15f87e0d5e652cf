"""From partition keys to what is asked of the history room: ranges of UTC days by symbol.

A run may hold one key or twenty thousand, of one symbol or many, with or without holes between its days: nothing is
assumed of it. Adjacent days become one range, so that the vendor is asked by range and never by day.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

from market_pipeline.errors import BadRange
from market_pipeline.market.instruments import Instruments
from market_pipeline.market.timeframes import DAY, WEEK
from market_pipeline.orchestration.partitions import split_key, sunday_of

DayRange = tuple[date, date]
Wanted = dict[str, list[DayRange]]
"""Symbol key -> half-open ranges of UTC days, in order, with at least a day between two of them."""


def wanted_days(keys: Iterable[str], instruments: Instruments, today: date) -> Wanted:
    """Return the days that daily partition keys ask for.

    Every instrument of a partition gets the partition's days, from its own `history_start` on; an instrument of which
    nothing remains is left out. `today` is the running UTC day.

    Raises:
        BadRange: a day lies in the future, or a key's partition has no instrument.
    """
    days: dict[str, set[date]] = {}
    for key in keys:
        day, partition = split_key(key)
        if day > today:
            raise BadRange(f"{day} has not begun: today is {today} UTC, and a future day has no bars to load")
        days.setdefault(partition, set()).add(day)
    return _by_symbol(days, instruments)


def wanted_weeks(keys: Iterable[str], instruments: Instruments, today: date) -> Wanted:
    """Return the days of weekly partition keys; of the running week, those up to `today`.

    Raises:
        BadRange: a week lies in the future, or a key's partition has no instrument.
    """
    days: dict[str, set[date]] = {}
    for key in keys:
        first, partition = split_key(key)
        if first > today:
            raise BadRange(f"the week of {first} has not begun: today is {today} UTC")
        week = (first + timedelta(days=n) for n in range(7))
        days.setdefault(partition, set()).update(day for day in week if day <= today)
    return _by_symbol(days, instruments)


def touched_weeks(wanted: Wanted, instruments: Instruments) -> list[tuple[date, str]]:
    """Return (Sunday, instrument partition) of every week that the days touch, in order."""
    weeks: set[tuple[date, str]] = set()
    for symbol, ranges in wanted.items():
        partition = instruments.get(symbol).partition
        for start, end in ranges:
            sunday = sunday_of(start)
            while sunday < end:
                weeks.add((sunday, partition))
                sunday += WEEK
    return sorted(weeks)


def ranges_of(days: Iterable[date]) -> list[DayRange]:
    """Return days, in any order, as half-open ranges; neighbouring days are joined."""
    ranges: list[DayRange] = []
    for day in sorted(days):
        if ranges and ranges[-1][1] == day:
            ranges[-1] = (ranges[-1][0], day + DAY)
        else:
            ranges.append((day, day + DAY))
    return ranges


def day_count(wanted: Wanted) -> int:
    """Return the days asked for, summed over the symbols."""
    return sum((end - start).days for ranges in wanted.values() for start, end in ranges)


def describe(wanted: Wanted) -> str:
    """Return one line for the log: how many symbols and days, and from when to when."""
    if not wanted:
        return "nothing: every day asked for lies before its instrument's history"
    first = min(ranges[0][0] for ranges in wanted.values())
    last = max(ranges[-1][1] for ranges in wanted.values()) - DAY
    names = list(wanted)
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{day_count(wanted):,} days of {shown}, {first} to {last}"


def _by_symbol(days: dict[str, set[date]], instruments: Instruments) -> Wanted:
    wanted: Wanted = {}
    for partition, asked in days.items():
        members = instruments.of_partition(partition)
        if not members:
            raise BadRange(f"partition {partition!r} has no instrument: was it taken out of the instruments file?")
        for instrument in members:
            ranges = ranges_of(day for day in asked if day >= instrument.history_start)
            if ranges:
                wanted[instrument.key] = ranges
    return wanted

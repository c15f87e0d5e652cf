"""Intervals of time, joined and cut: how much of a run is excused, and by what."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

Interval = tuple[datetime, datetime]


def joined(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the same time as intervals that neither touch nor overlap, in their order."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def within(intervals: Iterable[Interval], begin: datetime, end: datetime) -> list[Interval]:
    """Return what lies in [begin, end)."""
    return joined((max(a, begin), min(b, end)) for a, b in intervals if a < end and b > begin)


def without(intervals: Iterable[Interval], others: Iterable[Interval]) -> list[Interval]:
    """Return what is in the ones and in none of the others."""
    left: list[Interval] = []
    others = joined(others)
    for begin, end in joined(intervals):
        for a, b in others:
            if a < end and b > begin:
                if begin < a:
                    left.append((begin, a))
                begin = max(begin, b)
        if begin < end:
            left.append((begin, end))
    return left


def length(intervals: Iterable[Interval]) -> timedelta:
    """Return how long they are together."""
    return sum((b - a for a, b in joined(intervals)), timedelta())

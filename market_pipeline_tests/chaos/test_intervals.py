"""The arithmetic of the oracle, against sets of seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from market_pipeline_tests.chaos.intervals import Interval, joined, length, within, without

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def seconds(intervals: list[Interval]) -> set[int]:
    return {s for a, b in intervals for s in range(round((a - START).total_seconds()), 60) if a <= at(s) < b}


intervals = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 10)).map(lambda each: (at(each[0]), at(each[0] + each[1]))), max_size=5
)


@given(intervals, intervals, st.integers(0, 20), st.integers(20, 45))
def test_they_are_sets_of_seconds(ones: list[Interval], others: list[Interval], begin: int, end: int) -> None:
    assert seconds(joined(ones)) == seconds(ones)
    assert length(ones) == timedelta(seconds=len(seconds(ones)))
    assert seconds(without(ones, others)) == seconds(ones) - seconds(others)
    assert seconds(within(ones, at(begin), at(end))) == {s for s in seconds(ones) if begin <= s < end}

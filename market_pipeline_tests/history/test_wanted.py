"""Ranges of days: merged, cut, and refused where they cannot be."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.errors import BadRange, UnknownSymbol
from market_pipeline.history.wanted import minutes_of, resolve, subtract
from market_pipeline.market.instruments import parse_instruments
from market_pipeline.market.timeframes import midnight
from market_pipeline.stores.vendor_requests import merged

INSTRUMENTS = parse_instruments(
    """
instruments:
  - {symbol: EUR/USD, asset_class: forex, vendor_ticker: "C:EURUSD", calendar: forex, history_start: 2020-01-10}
""",
    "test",
)
NOW = datetime(2020, 2, 1, 12, 30, tzinfo=UTC)
ORIGIN = datetime(2020, 1, 1, tzinfo=UTC)

spans = st.lists(
    st.tuples(st.integers(0, 200), st.integers(1, 50)).map(
        lambda p: (ORIGIN + timedelta(minutes=p[0]), ORIGIN + timedelta(minutes=p[0] + p[1]))
    ),
    max_size=12,
)


def as_minutes(intervals: list[tuple[datetime, datetime]]) -> set[int]:
    return {
        m
        for start, end in intervals
        for m in range(int((start - ORIGIN).total_seconds() // 60), int((end - ORIGIN).total_seconds() // 60))
    }


@given(spans)
def test_merge_keeps_every_minute_once(intervals: list[tuple[datetime, datetime]]) -> None:
    joined = merged(intervals)
    assert as_minutes(joined) == as_minutes(intervals)
    assert minutes_of(joined) == len(as_minutes(intervals))
    assert all(a[1] < b[0] for a, b in pairwise(joined))


@given(spans, spans)
def test_subtract_is_set_difference(
    intervals: list[tuple[datetime, datetime]], done: list[tuple[datetime, datetime]]
) -> None:
    assert as_minutes(subtract(intervals, done)) == as_minutes(intervals) - as_minutes(done)


def test_days_before_the_history_start_are_left_out() -> None:
    _, intervals = resolve({"eur/usd": [(date(2020, 1, 1), date(2020, 1, 12))]}, INSTRUMENTS, NOW)["EURUSD"]
    assert intervals == [(midnight(date(2020, 1, 10)), midnight(date(2020, 1, 12)))]


def test_the_running_day_ends_now() -> None:
    _, intervals = resolve({"EURUSD": [(date(2020, 2, 1), date(2020, 2, 2))]}, INSTRUMENTS, NOW)["EURUSD"]
    assert intervals == [(midnight(date(2020, 2, 1)), NOW)]


def test_a_future_day_is_refused_with_its_name() -> None:
    with pytest.raises(BadRange, match="2020-02-02 lies in the future"):
        resolve({"EURUSD": [(date(2020, 2, 1), date(2020, 2, 3))]}, INSTRUMENTS, NOW)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(BadRange, match="its end must lie after its start"):
        resolve({"EURUSD": [(date(2020, 1, 20), date(2020, 1, 20))]}, INSTRUMENTS, NOW)


def test_an_unknown_symbol_is_named_with_what_is_known() -> None:
    with pytest.raises(UnknownSymbol, match=r"'EURSUD'.*EUR/USD"):
        resolve({"EURSUD": [(date(2020, 1, 20), date(2020, 1, 21))]}, INSTRUMENTS, NOW)

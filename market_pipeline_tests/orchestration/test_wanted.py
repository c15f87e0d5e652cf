from datetime import date, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.errors import BadRange
from market_pipeline.market.instruments import Instrument, Instruments
from market_pipeline.orchestration.partitions import bar_partitions, partition_key, split_key, sunday_of
from market_pipeline.orchestration.wanted import day_count, touched_weeks, wanted_days, wanted_weeks

TODAY = date(2024, 6, 13)


def stock(symbol: str, start: date, partition: str | None = None) -> Instrument:
    shared = {} if partition is None else {"partition": partition}
    return Instrument(
        symbol=symbol, asset_class="stock", vendor_ticker=symbol, calendar="XNYS", history_start=start, **shared
    )


INSTRUMENTS = Instruments(
    [
        stock("AAA", date(2024, 1, 1)),
        stock("BBB", date(2024, 3, 1), "pair"),
        stock("CCC", date(2024, 1, 10), "pair"),
    ]
)

days = st.dates(date(2023, 12, 1), TODAY)
keys = st.lists(st.tuples(days, st.sampled_from(["AAA", "pair"])), max_size=80)


@settings(max_examples=200, deadline=None)
@given(keys)
def test_ranges_cover_exactly_the_days_asked_for_from_each_history_start(asked: list[tuple[date, str]]) -> None:
    wanted = wanted_days([partition_key(day, p) for day, p in asked], INSTRUMENTS, TODAY)
    for instrument in INSTRUMENTS:
        expected = {d for d, p in asked if p == instrument.partition and d >= instrument.history_start}
        got = [
            start + timedelta(days=n)
            for start, end in wanted.get(instrument.key, [])
            for n in range((end - start).days)
        ]
        assert got == sorted(expected)
        # as few ranges as can be: two of them never touch
        ranges = wanted.get(instrument.key, [])
        assert all(a[1] < b[0] for a, b in pairwise(ranges))
        assert instrument.key not in wanted or expected
    assert day_count(wanted) == sum(len(ranges) for ranges in map(_days, wanted.values()))


@settings(max_examples=200, deadline=None)
@given(keys)
def test_every_day_lies_in_exactly_one_touched_week(asked: list[tuple[date, str]]) -> None:
    wanted = wanted_days([partition_key(day, p) for day, p in asked], INSTRUMENTS, TODAY)
    weeks = touched_weeks(wanted, INSTRUMENTS)
    assert len(weeks) == len(set(weeks))
    assert {(sunday_of(d), INSTRUMENTS.get(s).partition) for s, ranges in wanted.items() for d in _days(ranges)} == set(
        weeks
    )
    assert all(sunday.isoweekday() == 7 for sunday, _ in weeks)


def _days(ranges: list[tuple[date, date]]) -> list[date]:
    return [start + timedelta(days=n) for start, end in ranges for n in range((end - start).days)]


def test_a_future_day_is_refused_with_a_sentence() -> None:
    with pytest.raises(BadRange, match="2024-06-14 has not begun: today is 2024-06-13 UTC"):
        wanted_days(["2024-06-14|AAA"], INSTRUMENTS, TODAY)
    with pytest.raises(BadRange, match="the week of 2024-06-16 has not begun"):
        wanted_weeks(["2024-06-16|AAA"], INSTRUMENTS, TODAY)


def test_a_partition_without_instruments_is_refused() -> None:
    with pytest.raises(BadRange, match="partition 'GONE' has no instrument"):
        wanted_days(["2024-06-12|GONE"], INSTRUMENTS, TODAY)


def test_the_running_week_ends_today() -> None:
    assert wanted_weeks(["2024-06-09|AAA"], INSTRUMENTS, TODAY) == {"AAA": [(date(2024, 6, 9), date(2024, 6, 14))]}


def test_a_full_week_has_seven_days_and_neighbouring_weeks_join() -> None:
    assert wanted_weeks(["2024-05-05|AAA", "2024-05-12|AAA"], INSTRUMENTS, TODAY) == {
        "AAA": [(date(2024, 5, 5), date(2024, 5, 19))]
    }


def test_keys_of_dagsters_partitions_can_be_split() -> None:
    partitions = bar_partitions(INSTRUMENTS)
    daily = partitions.daily.get_partition_keys()
    assert split_key(daily[0]) == (date(2024, 1, 1), "AAA")
    assert {split_key(key)[1] for key in daily} == {"AAA", "pair"}
    # the week that the first day cuts has a partition, and it starts on a Sunday
    assert split_key(partitions.weekly.get_partition_keys()[0])[0] == date(2023, 12, 31)

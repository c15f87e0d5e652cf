from datetime import UTC, date, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.orchestration.checks.scope import chunks, clipped, sample_days
from market_pipeline.orchestration.wanted import day_count

START = datetime(2024, 3, 4, tzinfo=UTC)


def hours(n: int) -> datetime:
    return START + timedelta(hours=n)


def test_what_is_not_due_is_clipped() -> None:
    scope = {"A": [(hours(0), hours(5)), (hours(8), hours(9))], "B": [(hours(7), hours(9))]}
    assert clipped(scope, hours(4)) == {"A": [(hours(0), hours(4))]}


def test_chunks_cover_the_intervals_and_no_more() -> None:
    assert chunks([(hours(0), hours(5)), (hours(9), hours(10))], timedelta(hours=2)) == [
        (hours(0), hours(2)),
        (hours(2), hours(4)),
        (hours(4), hours(5)),
        (hours(9), hours(10)),
    ]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 10), st.integers(1, 20))
def test_a_sample_is_bounded_and_holds_the_newest_days(count: int, newest: int, spread: int) -> None:
    first = date(2019, 1, 1)
    wanted = {"A": [(first, first + timedelta(days=count))]}
    sample, cut = sample_days(wanted, newest, spread)
    assert day_count(sample) == min(count, newest + spread)
    assert cut == (count > newest + spread)
    start, end = sample["A"][-1]
    assert end == first + timedelta(days=count)
    assert (end - start).days >= min(count, newest)
    assert sample_days(wanted, newest, spread) == (sample, cut)

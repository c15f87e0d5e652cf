from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.errors import BadRange, UnknownTimeframe
from market_pipeline.market import timeframes
from market_pipeline.market.timeframes import DERIVED, TIMEFRAMES, ceil, floor, timeframe

MOMENTS = st.datetimes(datetime(1970, 1, 8), datetime(2100, 1, 1), timezones=st.just(UTC))


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


def test_a_parent_fits_into_its_child_and_comes_first() -> None:
    assert list(TIMEFRAMES) == ["1s", "1m", *DERIVED]
    for position, code in enumerate(DERIVED):
        tf, parent = TIMEFRAMES[code], TIMEFRAMES[code].parent
        assert parent is not None
        assert tf.seconds % parent.seconds == 0
        assert parent.code in ("1m", *DERIVED[:position])


@pytest.mark.parametrize("code", ["2m", "", "1M", None, 5])
def test_an_unknown_timeframe_is_named(code: object) -> None:
    with pytest.raises(UnknownTimeframe, match="unknown timeframe"):
        timeframe(code)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "at", "opened"),
    [
        ("1s", utc(2024, 2, 29, 23, 59, 59, 999_999), utc(2024, 2, 29, 23, 59, 59)),
        ("1m", utc(2024, 2, 29, 23, 59, 59), utc(2024, 2, 29, 23, 59)),
        ("15m", utc(2024, 12, 31, 23, 59), utc(2024, 12, 31, 23, 45)),
        ("4h", utc(2024, 3, 10, 7, 30), utc(2024, 3, 10, 4)),  # the morning New York's clocks change
        ("1d", utc(2024, 2, 29, 12), utc(2024, 2, 29)),
        ("1w", utc(2024, 1, 6, 23, 59), utc(2023, 12, 31)),  # a Saturday; the week began in the old year
        ("1w", utc(2024, 1, 7), utc(2024, 1, 7)),
    ],
)
def test_floor(code: str, at: datetime, opened: datetime) -> None:
    assert floor(at, code) == opened


def test_a_week_may_start_on_monday() -> None:
    sunday, monday = utc(2024, 1, 7, 12), utc(2024, 1, 8)
    assert floor(sunday, "1w", "monday") == utc(2024, 1, 1)
    assert floor(monday, "1w", "monday") == monday
    assert floor(monday, "1w", "sunday") == utc(2024, 1, 7)
    with pytest.raises(BadRange, match="tuesday"):
        floor(monday, "1w", "tuesday")  # type: ignore[arg-type]


@given(at=MOMENTS, code=st.sampled_from(list(TIMEFRAMES)), week_start=st.sampled_from(["sunday", "monday"]))
def test_a_window_holds_its_moment(at: datetime, code: str, week_start: timeframes.WeekStart) -> None:
    tf = timeframe(code)
    opened = floor(at, tf, week_start)
    assert opened <= at < opened + tf.length
    assert floor(opened, tf, week_start) == ceil(opened, tf, week_start) == opened
    assert ceil(at, tf, week_start) in (opened, opened + tf.length)
    if code == "1w":
        assert opened.strftime("%A").lower() == week_start


def test_times_need_a_zone_and_any_zone_will_do() -> None:
    with pytest.raises(BadRange, match="time zone"):
        floor(datetime(2024, 1, 1), "1m")
    assert floor(datetime(2024, 1, 1, 5, 30, tzinfo=timezone(timedelta(hours=5))), "1h") == utc(2024, 1, 1)

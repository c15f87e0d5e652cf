from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.errors import BadRange, InstrumentsFileError
from market_pipeline.market.bars import TS
from market_pipeline.market.sessions import calendar
from market_pipeline_tests.market.frames import utc

# exchange_calendars has not caught up with pandas 3 everywhere
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MINUTE = timedelta(minutes=1)
NEW_YORK = ZoneInfo("America/New_York")


def forex_is_open(at: datetime) -> bool:
    """Say it the slow way, on New York's clocks."""
    local = at.astimezone(NEW_YORK)
    weekday, evening = local.isoweekday(), local.hour >= 17
    return {5: not evening, 6: False, 7: evening}.get(weekday, True)


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        (utc(2024, 1, 7, 22), utc(2024, 1, 12, 22)),  # winter
        (utc(2024, 7, 7, 21), utc(2024, 7, 12, 21)),  # summer
        (utc(2024, 3, 10, 21), utc(2024, 3, 15, 21)),  # the first week of summer time; Europe follows on the 31st
        (utc(2024, 3, 3, 22), utc(2024, 3, 8, 22)),  # the week before
        (utc(2024, 11, 3, 22), utc(2024, 11, 8, 22)),  # the first week of winter time
        (utc(2024, 10, 27, 21), utc(2024, 11, 1, 21)),
        (utc(2023, 12, 31, 22), utc(2024, 1, 5, 22)),  # across the year's end
        (utc(2006, 4, 2, 21), utc(2006, 4, 7, 21)),  # before 2007 summer time began in April
    ],
)
def test_forex_weeks_follow_new_york(opened: datetime, closed: datetime) -> None:
    forex = calendar("forex")
    assert forex.sessions(opened, closed) == [(opened, closed)]
    assert forex.sessions(closed, closed + timedelta(hours=40)) == []
    minutes = forex.expected_minutes(opened - timedelta(days=1), closed + timedelta(days=1))
    assert len(minutes) == 5 * 1440
    assert (minutes[0], minutes[-1]) == (opened, closed - MINUTE)
    assert forex.is_open(opened)
    assert not forex.is_open(closed)
    assert forex.is_open(closed - timedelta(milliseconds=1))


@given(at=st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC)))
def test_forex_is_open_when_new_york_says_so(at: datetime) -> None:
    at = at.replace(microsecond=0)
    assert calendar("forex").is_open(at) == forex_is_open(at)


@settings(max_examples=40)
@given(
    start=st.datetimes(datetime(2000, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
    hours=st.integers(0, 24 * 9),
    name=st.sampled_from(["forex", "crypto"]),
)
def test_expected_minutes_are_those_in_which_the_market_is_open(start: datetime, hours: int, name: str) -> None:
    start = start.replace(microsecond=0)
    end = start + timedelta(hours=hours, seconds=30)
    first = start if start.second == 0 else start.replace(second=0) + MINUTE
    grid = pl.datetime_range(first, end, "1m", closed="left", eager=True).to_list()
    wanted = [each for each in grid if name == "crypto" or forex_is_open(each)]
    assert calendar(name).expected_minutes(start, end).to_list() == wanted


def test_expected_minutes_have_the_dtype_of_ts() -> None:
    for name in ("forex", "crypto", "XNYS"):
        minutes = calendar(name).expected_minutes(utc(2024, 1, 8), utc(2024, 1, 10))
        assert (minutes.name, minutes.dtype) == ("ts", TS)
        assert calendar(name).expected_minutes(utc(2024, 1, 8), utc(2024, 1, 8)).is_empty()


def test_crypto_never_closes() -> None:
    crypto = calendar("crypto")
    assert crypto.sessions(utc(2024, 1, 5), utc(2024, 1, 9)) == [(utc(2024, 1, 5), utc(2024, 1, 9))]
    assert len(crypto.expected_minutes(utc(2024, 2, 1), utc(2024, 3, 1))) == 29 * 1440
    assert crypto.is_open(utc(2024, 1, 6, 12))


@pytest.mark.parametrize(
    ("day", "opened", "closed"),
    [
        (utc(2024, 1, 8), (14, 30), (21, 0)),
        (utc(2024, 7, 8), (13, 30), (20, 0)),
        (utc(2024, 3, 8), (14, 30), (21, 0)),  # Friday before, Monday after the clocks change
        (utc(2024, 3, 11), (13, 30), (20, 0)),
        (utc(2024, 11, 29), (14, 30), (18, 0)),  # the day after Thanksgiving closes at 13:00
        (utc(2013, 7, 3), (13, 30), (17, 0)),
        (utc(1998, 1, 2), (14, 30), (21, 0)),
    ],
)
def test_new_york_stock_sessions(day: datetime, opened: tuple[int, int], closed: tuple[int, int]) -> None:
    exchange = calendar("XNYS")
    begin, end = (day + timedelta(hours=hour, minutes=minute) for hour, minute in (opened, closed))
    assert exchange.sessions(day, day + timedelta(days=1)) == [(begin, end)]
    minutes = exchange.expected_minutes(day, day + timedelta(days=1))
    assert (minutes[0], minutes[-1]) == (begin, end - MINUTE)
    assert len(minutes) == (end - begin) // MINUTE


@pytest.mark.parametrize(
    "day",
    [utc(2024, 1, 1), utc(2024, 1, 6), utc(2024, 3, 29), utc(2013, 12, 25), utc(2012, 10, 29), utc(2001, 9, 12)],
)
def test_new_york_is_closed_on_holidays_and_in_catastrophes(day: datetime) -> None:
    assert calendar("XNYS").sessions(day, day + timedelta(days=1)) == []
    assert calendar("XNYS").expected_minutes(day, day + timedelta(days=1)).is_empty()


def test_a_lunch_break_ends_a_session() -> None:
    assert calendar("XHKG").sessions(utc(2024, 1, 8), utc(2024, 1, 9)) == [
        (utc(2024, 1, 8, 1, 30), utc(2024, 1, 8, 4)),
        (utc(2024, 1, 8, 5), utc(2024, 1, 8, 8)),
    ]


def test_a_calendar_grows_with_what_is_asked() -> None:
    exchange = calendar("XLON")
    for year in (2024, 1999, 2013, 2024):
        assert len(exchange.sessions(utc(year, 1, 1), utc(year + 1, 1, 1))) in range(245, 260)


def test_what_no_calendar_knows_is_refused() -> None:
    with pytest.raises(InstrumentsFileError, match="unknown calendar 'XFOO'"):
        calendar("XFOO")
    with pytest.raises(BadRange, match="before it starts"):
        calendar("forex").expected_minutes(utc(2024, 1, 2), utc(2024, 1, 1))
    with pytest.raises(BadRange, match="time zone"):
        calendar("crypto").is_open(datetime(2024, 1, 1))
    with pytest.raises(BadRange, match="XHKG does not know 1950"):
        calendar("XHKG").sessions(utc(1950, 1, 5), utc(1950, 2, 1))


def test_sessions_are_given_whole() -> None:
    wednesday = utc(2024, 1, 10)
    week = [(utc(2024, 1, 7, 22), utc(2024, 1, 12, 22))]
    assert calendar("forex").sessions(wednesday, wednesday + MINUTE) == week

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.market.bars import TS
from market_pipeline.market.gaps import GAP_SCHEMA, RUN_SCHEMA, classify, lacking_minutes, missing_minutes, runs
from market_pipeline.market.sessions import calendar
from market_pipeline_tests.market.frames import START, times, utc
from market_pipeline_tests.market.real import full, needs_full_data

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pandas, by exchange_calendars

MINUTE = timedelta(minutes=1)
NONE = pl.Series("ts", [], dtype=TS)
LONG_AGO = timedelta(days=365)


def test_nothing_is_missing_where_all_is_present_or_nothing_expected() -> None:
    forex = calendar("forex")
    friday, sunday = utc(2024, 1, 12, 22), utc(2024, 1, 14, 22)
    assert missing_minutes(NONE, forex, friday, sunday).is_empty()
    assert missing_minutes(NONE, forex, friday, friday).is_empty()
    week = forex.expected_minutes(utc(2024, 1, 7), utc(2024, 1, 14))
    assert missing_minutes(week, forex, utc(2024, 1, 7), utc(2024, 1, 14)).is_empty()
    assert runs(NONE).schema == RUN_SCHEMA
    assert classify(NONE, now=START, settle=MINUTE).schema == GAP_SCHEMA


@given(
    start=st.integers(0, 20_000),
    length=st.integers(0, 3_000),
    present=st.lists(st.integers(-100, 25_000), max_size=200),
    name=st.sampled_from(["forex", "crypto"]),
)
def test_missing_is_expected_without_present(start: int, length: int, present: list[int], name: str) -> None:
    first, last = START + start * MINUTE, START + (start + length) * MINUTE
    there = times(START, present)
    wanted = sorted(set(calendar(name).expected_minutes(first, last)) - set(there))
    missing = missing_minutes(there, calendar(name), first, last)
    assert missing.to_list() == wanted
    assert (missing.name, missing.dtype) == ("ts", TS)
    joined = runs(missing)
    assert joined["minutes"].sum() == len(wanted)
    covered = [begin + step * MINUTE for begin, _, minutes in joined.iter_rows() for step in range(minutes)]
    assert covered == wanted
    assert all(end - begin == minutes * MINUTE for begin, end, minutes in joined.iter_rows())
    assert (joined["start"].shift(-1) > joined["end"]).all()  # as long as can be: no two runs touch


def test_a_run_does_not_join_two_sessions() -> None:
    forex = calendar("forex")
    monday, next_monday = utc(2024, 3, 4), utc(2024, 3, 18)
    assert runs(missing_minutes(NONE, forex, monday, next_monday)).rows() == [
        (monday, utc(2024, 3, 8, 22), 5 * 1440 - 120),
        (utc(2024, 3, 10, 21), utc(2024, 3, 15, 21), 5 * 1440),  # summer time has begun
        (utc(2024, 3, 17, 21), next_monday, 180),
    ]
    lunch = runs(missing_minutes(NONE, calendar("XHKG"), utc(2024, 1, 8), utc(2024, 1, 9)))
    assert lunch["minutes"].to_list() == [150, 180]


def test_bars_outside_the_session_fill_no_gap() -> None:
    exchange, day = calendar("XNYS"), utc(2024, 1, 8)
    early = times(day, range(9 * 60, 14 * 60 + 30))  # pre-market
    missing = missing_minutes(early, exchange, day, day + timedelta(days=1))
    assert runs(missing).rows() == [(utc(2024, 1, 8, 14, 30), utc(2024, 1, 8, 21), 390)]


def test_causes_and_their_order() -> None:
    now = START + 100 * MINUTE
    missing = times(START, [*range(10, 20), *range(90, 100)])
    gaps = classify(
        missing,
        now=now,
        settle=5 * MINUTE,
        lost=[(START + 12 * MINUTE, START + 16 * MINUTE)],
        confirmed=[(START + 14 * MINUTE, START + 15 * MINUTE), (START + 94 * MINUTE, START + 97 * MINUTE)],
    )

    def minute(n: int) -> datetime:
        return START + n * MINUTE

    assert gaps.rows() == [
        (minute(10), minute(12), 2, "not_loaded"),
        (minute(12), minute(14), 2, "lost"),
        (minute(14), minute(15), 1, "vendor_missing"),
        (minute(15), minute(16), 1, "lost"),
        (minute(16), minute(20), 4, "not_loaded"),
        (minute(90), minute(94), 4, "not_loaded"),
        (minute(94), minute(95), 1, "vendor_missing"),
        (minute(95), minute(100), 5, "pending_settle"),  # whatever the vendor said: it was too early to ask
    ]
    assert gaps.schema == GAP_SCHEMA


def test_a_bar_that_is_not_complete_is_pending_unless_its_ticks_were_lost() -> None:
    present = pl.DataFrame({"ts": times(START, [0, 1, 2, 5]), "complete": [True, False, False, True]})
    missing, incomplete = lacking_minutes(present, calendar("crypto"), START, START + 6 * MINUTE)
    assert missing.to_list() == times(START, [3, 4]).to_list()
    assert incomplete.to_list() == times(START, [1, 2]).to_list()
    gaps = classify(
        times(START, [1, 2, 3, 4]),
        now=START + LONG_AGO,
        settle=5 * MINUTE,
        pending=[(START + MINUTE, START + 3 * MINUTE)],
        lost=[(START + 2 * MINUTE, START + 4 * MINUTE)],
    )
    assert gaps["cause"].to_list() == ["pending_settle", "lost", "not_loaded"]
    assert gaps["minutes"].to_list() == [1, 2, 1]


@pytest.mark.parametrize(("seconds", "cause"), [(0, "not_loaded"), (-1, "pending_settle")])
def test_a_minute_settles_when_its_window_ended_long_enough_ago(seconds: int, cause: str) -> None:
    now = START + MINUTE + timedelta(minutes=5, seconds=seconds)
    assert classify(times(START, [0]), now=now, settle=5 * MINUTE)["cause"].to_list() == [cause]


@needs_full_data
@pytest.mark.parametrize("symbol", ["btcusdt", "adausdt"])
def test_the_real_outage_of_binance(symbol: str) -> None:
    ts = full(f"{symbol}_binance_1m_2023")["ts"]
    missing = missing_minutes(ts, calendar("crypto"), ts[0], ts[-1] + MINUTE)
    # from 12:40 to 13:59: the bars on either side, 12:39 and 14:00, are 81 minutes apart
    assert runs(missing).rows() == [(utc(2023, 3, 24, 12, 40), utc(2023, 3, 24, 14), 80)]
    gaps = classify(missing, now=ts[-1] + LONG_AGO, settle=5 * MINUTE, confirmed=[(utc(2023, 3, 24), utc(2023, 3, 25))])
    assert gaps["minutes"].to_list() == [80]
    assert gaps["cause"].unique().to_list() == ["vendor_missing"]


@needs_full_data
def test_real_forex_minutes_miss_little_inside_the_calendar_and_nothing_outside() -> None:
    forex, ts = calendar("forex"), full("eurusd_metatrader_1m")["ts"]
    first, last = ts[0], ts[-1] + MINUTE
    expected = forex.expected_minutes(first, last)
    assert len(set(ts) - set(expected)) < 0.001 * len(ts)  # no bars on seven weekends
    assert len(missing_minutes(ts, forex, first, last)) < 0.02 * len(expected)

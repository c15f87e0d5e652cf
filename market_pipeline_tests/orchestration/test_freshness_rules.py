from datetime import UTC, date, datetime

import pytest

from market_pipeline.market.instruments import Instruments
from market_pipeline.orchestration.checks.freshness_rules import due_until, judge_freshness, judge_partial

# a Tuesday morning: Monday is due since 02:00
NOW = datetime(2024, 3, 5, 9, 30, tzinfo=UTC)


def at(day: int, hour: int, minute: int) -> datetime:
    return datetime(2024, 3, day, hour, minute, tzinfo=UTC)


def state(instruments: Instruments, symbol: str, last: datetime, now: datetime = NOW) -> str:
    instrument = instruments.get(symbol)
    verdict = judge_freshness([instrument], [], {instrument.key: last}, now)
    assert verdict.table.height == 1
    return str(verdict.table["state"][0])


def test_what_is_due_waits_for_the_nightly_run() -> None:
    assert due_until(at(5, 1, 59)) == at(4, 0, 0)
    assert due_until(at(5, 2, 0)) == at(5, 0, 0)


@pytest.mark.parametrize(
    ("symbol", "last", "expected"),
    [
        ("EUR/USD", at(4, 23, 59), "fresh"),
        ("EUR/USD", at(4, 23, 0), "fresh"),  # an hour of open market may be late
        ("EUR/USD", at(4, 22, 30), "stale"),
        ("BTC/USD", at(3, 23, 59), "stale"),
        ("SPY", at(4, 20, 59), "fresh"),  # New York closed at 21:00 UTC, and a closed market ages nothing
        ("SPY", at(1, 20, 59), "stale"),  # Monday's session is missing
    ],
)
def test_age_counts_open_minutes_only(instruments: Instruments, symbol: str, last: datetime, expected: str) -> None:
    assert state(instruments, symbol, last) == expected


def test_a_weekend_ages_no_currency(instruments: Instruments) -> None:
    friday_close = datetime(2024, 3, 1, 21, 59, tzinfo=UTC)
    sunday_noon = datetime(2024, 3, 3, 12, 0, tzinfo=UTC)
    assert state(instruments, "EUR/USD", friday_close, sunday_noon) == "fresh"


def test_symbols_that_nobody_follows_are_listed_and_never_stale(instruments: Instruments) -> None:
    verdict = judge_freshness(
        [instruments.get("EURUSD")], ["SPY", "IBM"], {"EURUSD": at(4, 23, 59), "SPY": at(1, 20, 0)}, NOW
    )
    assert verdict.level == "pass"
    assert verdict.table["state"].to_list() == ["fresh", "not followed", "not followed"]
    assert verdict.numbers["symbols followed"] == 1


def test_a_followed_symbol_without_a_bar_is_red_and_first(instruments: Instruments) -> None:
    verdict = judge_freshness(
        [instruments.get("EURUSD"), instruments.get("BTCUSD")], [], {"EURUSD": at(4, 23, 59)}, NOW
    )
    assert verdict.level == "error"
    assert "BTC/USD" in verdict.sentence
    assert verdict.table["state"].to_list() == ["no bar", "fresh"]


def test_only_days_that_are_over_and_due_are_red() -> None:
    partial = [(date(2024, 3, 5), "EURUSD"), (date(2024, 3, 4), "EURUSD"), (date(2024, 3, 3), "us")]
    assert judge_partial(partial[:1], NOW).level == "pass"
    verdict = judge_partial(partial, NOW)
    assert verdict.level == "error"
    assert verdict.table["partition"].to_list() == ["2024-03-03|us", "2024-03-04|EURUSD"]
    # until the nightly run had its time, yesterday may be partial
    assert judge_partial([(date(2024, 3, 4), "EURUSD")], at(5, 1, 0)).level == "pass"

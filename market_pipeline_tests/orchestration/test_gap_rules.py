from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.market.bars import TS
from market_pipeline.market.instruments import parse_instruments
from market_pipeline.orchestration.checks.evaluate import evaluate_gaps
from market_pipeline.orchestration.checks.gap_rules import GAP_SCHEMA, judge_gaps, unexplained_runs
from market_pipeline.settings import HistorySettings
from market_pipeline_tests.orchestration.conftest import INSTRUMENTS, LEDGER_SCHEMA, StoredBars

START = datetime(2024, 3, 4, 10, tzinfo=UTC)
THIN = {"EURUSD": 5, "SPY": 15}
PARTITION = {"EURUSD": "EURUSD", "SPY": "us"}


def gap(
    minutes: int, state: str, attempts: int = 1, symbol: str = "EURUSD", start: datetime = START, note: str = ""
) -> tuple[object, ...]:
    return (symbol, start, start + timedelta(minutes=minutes), minutes, "not_loaded", state, attempts, note)


def gaps(*rows: tuple[object, ...]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=GAP_SCHEMA, orient="row")


@pytest.mark.parametrize(
    ("row", "level"),
    [
        (gap(1, "unexplained", 0), "error"),
        (gap(1, "open", 0), "error"),
        (gap(1, "given_up", 1), "error"),
        (gap(5, "open", 1), "pass"),
        (gap(6, "open", 1), "warn"),
        (gap(5, "confirmed", 3), "pass"),
        (gap(6, "confirmed", 3), "warn"),
        (gap(15, "confirmed", 3, "SPY"), "pass"),
        (gap(16, "confirmed", 3, "SPY"), "warn"),
    ],
)
def test_each_kind_of_gap_has_its_level(row: tuple[object, ...], level: str) -> None:
    assert judge_gaps(gaps(row), THIN, PARTITION).level == level


def test_the_worst_gap_decides_and_is_named_first() -> None:
    later = START + timedelta(days=1)
    verdict = judge_gaps(
        gaps(gap(60, "confirmed"), gap(7, "unexplained", 0, "SPY", later), gap(3, "confirmed")), THIN, PARTITION
    )
    assert verdict.level == "error"
    assert "7 of SPY from 2024-03-05 10:00 UTC" in verdict.sentence
    assert verdict.table["partition"].to_list() == ["2024-03-05|us", "2024-03-04|EURUSD"]
    assert verdict.numbers == {
        "minutes missing, not explained": 7,
        "minutes missing, given up": 0,
        "minutes missing at the vendor, unusual": 60,
        "minutes missing at the vendor, usual": 3,
        "partitions with gaps": 2,
    }


def test_what_was_given_up_is_named_with_its_error_and_how_to_ask_again() -> None:
    verdict = judge_gaps(gaps(gap(60, "confirmed"), gap(3, "given_up", 0, note="the plan ends")), THIN, PARTITION)
    assert (verdict.level, verdict.numbers["minutes missing, given up"]) == ("error", 3)
    assert "3 of EURUSD from 2024-03-04 10:00 UTC (the plan ends)" in verdict.sentence
    assert "retry_given_up" in verdict.sentence
    assert verdict.table.select("state", "level").rows() == [("given_up", "error"), ("confirmed", "warn")]


def test_no_gap_passes() -> None:
    verdict = judge_gaps(gaps(), THIN, PARTITION)
    assert (verdict.level, verdict.sentence) == ("pass", "no expected minute is missing")


def minutes(*offsets: int) -> pl.Series:
    return pl.Series("ts", [START + timedelta(minutes=n) for n in sorted(offsets)], dtype=TS)


def test_a_hole_inside_a_known_gap_is_explained_and_beside_it_is_not() -> None:
    known = pl.DataFrame({"start": [START], "end": [START + timedelta(minutes=3)]}, schema={"start": TS, "end": TS})
    found = unexplained_runs("EURUSD", minutes(0, 1, 2, 3, 4, 9), known)
    assert found.select("start", "minutes", "state").rows() == [
        (START + timedelta(minutes=3), 2, "unexplained"),
        (START + timedelta(minutes=9), 1, "unexplained"),
    ]


@settings(max_examples=150, deadline=None)
@given(
    st.sets(st.integers(0, 300), max_size=80),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=8),
)
def test_every_missing_minute_is_either_known_or_unexplained(
    missing: set[int], intervals: list[tuple[int, int]]
) -> None:
    known = pl.DataFrame(
        [(START + timedelta(minutes=a), START + timedelta(minutes=a + n)) for a, n in intervals],
        schema={"start": TS, "end": TS},
        orient="row",
    )
    found = unexplained_runs("EURUSD", minutes(*missing), known)
    covered = {m for a, n in intervals for m in range(a, a + n)}
    told = {
        int((start - START).total_seconds()) // 60 + n
        for start, count in found.select("start", "minutes").iter_rows()
        for n in range(count)
    }
    assert told == missing - covered


@pytest.mark.parametrize(
    ("first", "attempts", "level", "minutes"),
    [
        (40, 1, "warn", {"minutes missing at the vendor, unusual": 6}),  # due is what is older than 10:45:20
        (40, 0, "pass", {"minutes missing, not explained": 0}),  # live repair is about to ask
        (30, 0, "error", {"minutes missing, not explained": 6}),  # for these it should have asked
    ],
)
def test_of_a_gap_that_reaches_up_to_the_present_only_what_is_due_counts(
    first: int, attempts: int, level: str, minutes: dict[str, int]
) -> None:
    now, minute = START + timedelta(hours=1, seconds=20), timedelta(minutes=1)
    rules = HistorySettings(settle=5 * minute, lateness=10 * minute)
    begin = START + first * minute
    present = pl.DataFrame({"ts": pl.datetime_range(START, begin, "1m", closed="left", eager=True, time_zone="UTC")})
    stored = StoredBars(
        frames={("EURUSD", "1m"): present.cast(TS)},
        asked_ranges={"EURUSD": [(START, now)]},
        ledger=pl.DataFrame(
            [("EURUSD", begin, now, 60 - first, "pending_settle", "open", attempts, "", 1)],
            schema=LEDGER_SCHEMA,
            orient="row",
        ),
    )
    stores: Any = SimpleNamespace(bars=stored, gaps=stored, requests=stored)
    verdict = evaluate_gaps(stores, parse_instruments(INSTRUMENTS, "test"), rules, now, None)
    assert verdict.level == level, verdict
    assert verdict.numbers.items() >= minutes.items()

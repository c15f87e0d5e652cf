from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from market_pipeline.market.aggregation import fold
from market_pipeline.orchestration.checks.agreement_rules import differences, judge_agreement

START = datetime(2024, 3, 4, 10, tzinfo=UTC)
LATER = START + timedelta(days=1)


def minutes(count: int = 30) -> pl.DataFrame:
    base = pl.select(n=pl.int_range(count)).with_columns(
        symbol=pl.lit("EURUSD"),
        ts=(pl.lit(START) + pl.col("n") * timedelta(minutes=1)).cast(pl.Datetime("ms", "UTC")),
        open=1.0 + pl.col("n") * 0.001,
        volume=pl.col("n") * 0.1,
        trades=pl.col("n").cast(pl.UInt32),
    )
    prices = base.with_columns(high=pl.col("open") + 0.01, low=pl.col("open") - 0.01, close=pl.col("open") + 0.005)
    return prices.with_columns(vwap=pl.col("close")).drop("n")


def test_a_fold_agrees_with_itself() -> None:
    parent = minutes()
    assert differences(parent, fold(parent, "5m"), "5m", LATER).is_empty()


@pytest.mark.parametrize("column", ["open", "high", "low", "close", "volume", "trades"])
def test_a_change_of_one_value_is_found_and_named(column: str) -> None:
    parent = minutes()
    child = fold(parent, "5m")
    second = child["ts"][1]
    changed = pl.when(pl.col("ts") == second).then(pl.col(column) + 1).otherwise(pl.col(column))
    found = differences(parent, child.with_columns(changed.cast(child.schema[column]).alias(column)), "5m", LATER)
    assert found.select("symbol", "ts", "difference").rows() == [("EURUSD", second, column)]
    assert found["child"][0] == pytest.approx(found["parent"][0] + 1)


def test_missing_and_orphaned_windows_are_found() -> None:
    parent = minutes()
    child = fold(parent, "5m")
    assert differences(parent, child[1:], "5m", LATER)["difference"].to_list() == ["not derived"]
    assert differences(parent.filter(pl.col("ts") >= START + timedelta(minutes=5)), child, "5m", LATER)[
        "difference"
    ].to_list() == ["has no parent"]


def test_a_window_that_still_runs_need_not_be_derived() -> None:
    parent = minutes()
    child = fold(parent, "5m")[:-1]
    assert differences(parent, child, "5m", START + timedelta(minutes=29)).is_empty()
    assert differences(parent, child, "5m", START + timedelta(minutes=30)).height == 1


def test_the_last_bits_of_a_sum_do_not_matter() -> None:
    parent = minutes()
    child = fold(parent, "15m").with_columns(pl.col("volume") * (1 + 1e-12))
    assert differences(parent, child, "15m", LATER).is_empty()


def test_the_verdict_names_the_first_difference() -> None:
    parent = minutes()
    found = differences(parent, fold(parent, "5m")[1:], "5m", LATER)
    verdict = judge_agreement("5m", [found], 6, "every day")
    assert verdict.level == "error"
    assert "EURUSD at 2024-03-04 10:00 UTC (not derived)" in verdict.sentence
    assert judge_agreement("5m", [], 6, "every day").level == "pass"

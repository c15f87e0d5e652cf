from __future__ import annotations

from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from market_pipeline.errors import InvalidBars
from market_pipeline.market.bar_frame import BarFrame
from market_pipeline.market.bars import (
    BAR_SCHEMA,
    STORED_SCHEMA,
    empty_bars,
    implausible,
    split_valid,
    validate_bars,
)
from market_pipeline_tests.market.frames import START, minute_bars


def with_value(column: str, value: Any, row: int = 3) -> pl.DataFrame:
    """Return good bars with one value replaced."""
    bars = minute_bars()
    values = bars[column].to_list()
    values[row] = value
    return bars.with_columns(pl.Series(column, values, dtype=BAR_SCHEMA[column]))


MALFORMED = [
    *[(name, None, f"{name}: null") for name in BAR_SCHEMA if name != "vwap"],
    *[
        (name, value, f"{name}: not a finite number")
        for name in ("open", "high", "low", "close", "volume", "vwap")
        for value in (float("nan"), float("inf"), float("-inf"))
    ],
    ("volume", -0.01, "volume: negative"),
    ("symbol", "", "symbol: empty"),
    ("timeframe", "2m", "timeframe: unknown"),
    ("source", "rumour", "source: unknown"),
    ("source", "derived", "origin: "),
    ("origin", "vendor_historical", "origin: "),
    ("is_deleted", 2, "is_deleted: neither 0 nor 1"),
    ("ts", START + timedelta(seconds=185), "ts: opens no window"),
    ("ts", START + timedelta(milliseconds=180_001), "ts: opens no window"),
    ("timeframe", "5m", "ts: opens no window"),
    ("timeframe", "1w", "ts: opens no window"),
]


def test_good_bars_pass_unchanged() -> None:
    bars = minute_bars(no_vwap=[2])
    assert validate_bars(bars, where="page").equals(bars)
    good, bad = split_valid(bars)
    assert good.equals(bars)
    assert bad.is_empty()
    assert "reason" in bad.columns
    BarFrame.validate(bars)
    assert implausible(bars).is_empty()
    assert dict(bars.schema) == dict(BAR_SCHEMA)


def test_no_bars_are_valid_bars() -> None:
    assert validate_bars(empty_bars(), where="page").is_empty()
    assert split_valid(empty_bars())[1].is_empty()
    assert dict(empty_bars().schema) == dict(BAR_SCHEMA)


def test_stored_columns_are_allowed() -> None:
    stored = minute_bars().with_columns(batch_id=pl.lit(1, pl.UInt64), ingested_at=pl.col("ts"))
    assert set(stored.columns) == set(STORED_SCHEMA)
    validate_bars(stored, where="batch")


@pytest.mark.parametrize(("column", "value", "reason"), MALFORMED)
def test_a_malformed_row_is_named_and_split_off_alone(column: str, value: Any, reason: str) -> None:
    bars = with_value(column, value)
    with pytest.raises(InvalidBars) as refused:
        validate_bars(bars, where="page 7 of EURUSD")
    message = str(refused.value)
    assert message.startswith(f"page 7 of EURUSD: {reason}")
    assert "(1 of 10 rows are malformed)" in message
    if column not in {"ts", "timeframe"}:
        assert (START + timedelta(minutes=3)).isoformat() in message
    if isinstance(value, int | float):
        assert repr(value) in message
    good, bad = split_valid(bars)
    assert (good.height, bad.height) == (9, 1)
    assert bad["reason"][0].startswith(reason)
    assert good.equals(bars.filter(pl.int_range(pl.len()) != 3))


def test_a_row_off_the_minute_shows_its_ts() -> None:
    with pytest.raises(InvalidBars, match=r"2024-01-08T00:03:05\+00:00"):
        validate_bars(with_value("ts", START + timedelta(seconds=185)), where="page")


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (minute_bars().drop("vwap"), "no column vwap"),
        (minute_bars().with_columns(trades=pl.col("trades").cast(pl.Int64)), "trades: is Int64, not UInt32"),
        (minute_bars().with_columns(ts=pl.col("ts").dt.replace_time_zone(None)), "ts: is Datetime"),
        (minute_bars().with_columns(ts=pl.col("ts").dt.cast_time_unit("us")), "ts: is Datetime"),
        (minute_bars().with_columns(note=pl.lit("")), "unknown column note"),
        (pl.DataFrame({"a": [1]}), "unknown column a; no column symbol"),
    ],
)
def test_wrong_columns_are_named(frame: pl.DataFrame, says: str) -> None:
    with pytest.raises(InvalidBars, match=says):
        validate_bars(frame, where="page")


def test_of_two_bars_of_one_minute_the_first_is_good() -> None:
    bars = minute_bars()
    twice = pl.concat([bars, bars.slice(4, 2)])
    with pytest.raises(InvalidBars, match=r"second bar.*\(2 of 12"):
        validate_bars(twice, where="page")
    good, bad = split_valid(twice)
    assert good.equals(bars)
    assert bad["ts"].to_list() == bars["ts"][4:6].to_list()
    # but a malformed first bar must not push out the good second one
    good, bad = split_valid(pl.concat([with_value("open", float("nan")), bars.slice(3, 1)]))
    assert good.sort("ts").equals(bars)
    assert bad["reason"].to_list() == ["open: not a finite number"]


def test_series_may_follow_each_other_or_mix() -> None:
    both = pl.concat([minute_bars(), minute_bars(symbol="GBPUSD")])
    validate_bars(both, where="batch")
    validate_bars(both.sort("ts", "symbol"), where="batch")
    with pytest.raises(InvalidBars, match="second bar"):
        validate_bars(pl.concat([both, both.head(1)]), where="batch")


def test_derived_bars_name_their_origin() -> None:
    derived = minute_bars().with_columns(source=pl.lit("derived"), origin=pl.lit("vendor_historical"))
    validate_bars(derived, where="derived")
    no_parent_left = derived.with_columns(origin=pl.lit(""), is_deleted=pl.lit(1, pl.UInt8))
    validate_bars(no_parent_left, where="derived")
    with pytest.raises(InvalidBars, match="origin"):
        validate_bars(derived.with_columns(origin=pl.lit("derived")), where="derived")


@pytest.mark.parametrize(("week_start", "weekday"), [("sunday", 7), ("monday", 1)])
def test_weeks_open_on_the_day_that_the_caller_says(week_start: Any, weekday: int) -> None:
    days = minute_bars(START, [1440 * day for day in range(7)]).with_columns(timeframe=pl.lit("1w"))
    good, _ = split_valid(days, week_start=week_start)
    assert good["ts"].dt.weekday().to_list() == [weekday]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"high": 90.0, "low": 91.0, "open": 90.5, "close": 90.5}, "high is below low"),
        ({"open": 100.0, "high": 99.0, "low": 98.0, "close": 98.5}, "outside"),
        ({"open": 98.5, "high": 99.0, "low": 98.0, "close": 97.0}, "outside"),
        ({"open": 1.0, "high": 1.0, "low": 0.0, "close": 1.0}, "not above 0"),
        ({"open": 1.0, "high": 1.0, "low": -2.0, "close": 1.0}, "not above 0"),
        ({"vwap": 0.0}, "vwap"),
    ],
)
def test_an_implausible_bar_is_well_formed_and_flagged(values: dict[str, float], reason: str) -> None:
    bars = minute_bars()
    third = pl.int_range(pl.len()) == 3
    bars = bars.with_columns(
        pl.when(third).then(pl.lit(value)).otherwise(name).alias(name) for name, value in values.items()
    )
    validate_bars(bars, where="page")
    flagged = implausible(bars)
    assert flagged["ts"].to_list() == [START + timedelta(minutes=3)]
    assert reason in flagged["reason"][0]


def test_a_tombstone_is_not_implausible() -> None:
    tombstones = minute_bars().with_columns(
        *[pl.lit(0.0).alias(name) for name in ("open", "high", "low", "close", "volume")],
        is_deleted=pl.lit(1, pl.UInt8),
    )
    assert implausible(tombstones).is_empty()

"""Live minutes against the vendor's: every minute in one state, every difference with its size."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.market.bars import BAR_SCHEMA, LIVE_AGGREGATED
from market_pipeline.market.reconciliation import (
    COMPARED,
    DIFFERENCE_SCHEMA,
    LAST_BITS,
    RECONCILED_SCHEMA,
    Counts,
    count,
    differences,
    reconcile,
)
from market_pipeline_tests.market.frames import START, minute_bars, times

VALUES = st.sampled_from([0.0, 1.0, 1.0001, 1.1, 2.0, 250.0])
MINUTE = st.fixed_dictionaries(
    {"complete": st.booleans(), **{name: VALUES for name in COMPARED if name != "trades"}, "trades": st.integers(0, 3)}
)
MINUTES = st.dictionaries(st.integers(0, 8), MINUTE, max_size=8)


def frame(minutes: dict[int, dict[str, Any]], symbol: str = "EURUSD") -> pl.DataFrame:
    columns = ["complete", *COMPARED]
    return pl.DataFrame(
        {
            "symbol": pl.Series([symbol] * len(minutes), dtype=pl.String),
            "ts": times(START, list(minutes)),
            **{name: pl.Series([one[name] for one in minutes.values()], dtype=BAR_SCHEMA[name]) for name in columns},
        }
    )


def expected(
    live: dict[str, Any] | None, vendor: dict[str, Any] | None, prices: float, volumes: float
) -> tuple[str, list[str]]:
    """Say of one minute, in plain Python, what the vectorised code must find."""
    if live is not None and not live["complete"]:
        return "live incomplete", []
    if vendor is not None and not vendor["complete"]:
        return "unsettled", []
    if vendor is None:
        return "only live", []
    if live is None:
        return "only vendor", []
    wrong = []
    for name in COMPARED:
        tolerance = volumes if name in ("volume", "trades") else prices
        a, b = float(live[name]), float(vendor[name])
        if name == "trades" and b == 0 and vendor["volume"] > 0:
            continue
        distance = abs(a - b) / abs(b) if b else float(a != 0)
        if distance > max(tolerance, LAST_BITS):
            wrong.append(name)
    return ("differs" if wrong else "equal"), wrong


@given(MINUTES, MINUTES, st.sampled_from([0.0, 1e-3, 0.2, 2.0]), st.sampled_from([0.0, 0.15, 1.0]))
def test_every_minute_is_in_the_state_that_plain_python_finds(
    live: dict[int, Any], vendor: dict[int, Any], prices: float, volumes: float
) -> None:
    found = reconcile(frame(live), frame(vendor), price_tolerance=prices, volume_tolerance=volumes)
    assert found.schema == RECONCILED_SCHEMA
    places = sorted({*live, *vendor})
    assert found["ts"].to_list() == times(START, places).to_list()
    wanted = [expected(live.get(n), vendor.get(n), prices, volumes) for n in places]
    assert list(zip(found["state"], found["columns"].to_list(), strict=True)) == wanted

    table = differences(found)
    assert table.schema == DIFFERENCE_SCHEMA
    assert table.height == sum(len(columns) for _, columns in wanted)
    assert table["difference"].is_sorted(descending=True)
    assert (table["difference"] > 0).all()

    counts = count(found)
    assert counts.compared + counts.only_live + counts.only_vendor + counts.live_incomplete + counts.unsettled == len(
        places
    )
    assert counts.differ == table.select("symbol", "ts").unique().height
    if table.height:
        assert counts.largest >= table["difference"][0]  # one that is tolerated may be larger


@given(MINUTES, st.floats(0, 1), st.floats(0, 1))
def test_a_wider_tolerance_never_finds_more(live: dict[int, Any], narrow: float, more: float) -> None:
    vendor = {n: {**one, "high": one["high"] * 1.25, "volume": one["volume"] + 1} for n, one in live.items()}
    few, many = (
        differences(reconcile(frame(live), frame(vendor), price_tolerance=each, volume_tolerance=each))
        for each in (narrow + more, narrow)
    )
    assert few.join(many, on=["symbol", "ts", "column"], how="anti").height == 0


@given(MINUTES)
def test_equal_minutes_agree_and_measure_nothing(minutes: dict[int, Any]) -> None:
    settled = {n: {**one, "complete": True} for n, one in minutes.items()}
    found = reconcile(frame(settled), frame(settled))
    assert set(found["state"]) <= {"equal"}
    assert count(found) == Counts(equal=len(settled))


def test_a_wrong_high_is_told_with_both_values_and_its_size() -> None:
    vendor = minute_bars(offsets=range(4))
    live = vendor.with_columns(
        source=pl.lit(LIVE_AGGREGATED),
        high=pl.when(pl.arange(pl.len()) == 2).then(pl.col("high") * 1.01).otherwise("high"),
    )
    table = differences(reconcile(live, vendor))
    right = vendor["high"][2]
    assert table.drop("difference").rows() == [("EURUSD", vendor["ts"][2], "high", right * 1.01, right)]
    assert table["difference"][0] == pytest.approx(0.01)


def test_the_last_bits_of_a_float_are_no_difference() -> None:
    vendor = frame({0: {"complete": True, **dict.fromkeys(COMPARED, 3)}}).with_columns(open=pl.lit(0.3))
    live = vendor.with_columns(open=pl.lit(0.1) + pl.lit(0.2))
    assert live["open"][0] != vendor["open"][0]
    assert count(reconcile(live, vendor)).equal == 1


def test_symbols_are_kept_apart_and_nothing_is_a_valid_answer() -> None:
    one = {0: {"complete": True, **dict.fromkeys(COMPARED, 1)}}
    found = reconcile(frame(one, "EURUSD"), frame(one, "BTCUSD"))
    assert list(zip(found["symbol"], found["state"], strict=True)) == [
        ("BTCUSD", "only vendor"),
        ("EURUSD", "only live"),
    ]
    nothing = reconcile(frame({}), frame({}))
    assert nothing.schema == RECONCILED_SCHEMA
    assert differences(nothing).schema == DIFFERENCE_SCHEMA
    assert count(nothing) == Counts()


def test_counts_of_symbols_add_up() -> None:
    total = Counts(equal=2, differ=1, largest=0.5)
    total.add(Counts(equal=1, only_live=3, largest=0.25))
    assert total == Counts(equal=3, differ=1, only_live=3, largest=0.5)
    assert (total.compared, total.live) == (4, 7)

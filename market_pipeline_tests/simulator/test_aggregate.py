"""The vendor's aggregation against an engine that shares nothing with it, and by hand where clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import duckdb
import numpy as np
import pytest

from market_pipeline.simulator import truth
from market_pipeline.simulator.aggregate import fold, window_end, window_starts
from market_pipeline.simulator.ticks import fold_ticks, ticks_of


def ms(*parts: int) -> int:
    return truth.to_ms(datetime(*parts, tzinfo=UTC))


@pytest.mark.parametrize(
    ("multiplier", "timespan", "interval"),
    [
        (1, "minute", "1 minute"),
        (5, "minute", "5 minutes"),
        (7, "minute", "7 minutes"),
        (45, "minute", "45 minutes"),
        (1, "hour", "1 hour"),
        (4, "hour", "4 hours"),
        (1, "day", "1 day"),
        (3, "day", "3 days"),
        (1, "week", "7 days"),
        (2, "week", "14 days"),
        (1, "month", "1 month"),
        (1, "quarter", "3 months"),
    ],
)
def test_folds_equal_duckdbs(multiplier: int, timespan: str, interval: str) -> None:
    bars = truth.minute_bars("C:GBPUSD", ms(2023, 1, 1), ms(2023, 4, 20))
    mine = fold(bars, multiplier, timespan, "forex").to_frame()  # type: ignore[arg-type]
    minutes = bars.to_frame().with_columns(ts=bars.to_frame()["ts"].dt.replace_time_zone(None))  # noqa: F841
    origin = "1970-01-04" if timespan == "week" else "1970-01-01"
    theirs = duckdb.sql(
        f"""select time_bucket(interval '{interval}', ts, timestamp '{origin}') as w, arg_min(open, ts) as open,
        max(high) as high, min(low) as low, arg_max(close, ts) as close, sum(volume) as volume,
        sum(vwap * volume) / sum(volume) as vwap, sum(trades)::bigint as trades from minutes group by w order by w"""
    ).pl()
    assert mine["ts"].dt.replace_time_zone(None).dt.epoch("ms").to_list() == theirs["w"].dt.epoch("ms").to_list()
    for column in ("open", "high", "low", "close", "volume", "trades"):
        assert mine[column].to_list() == theirs[column].to_list()
    assert np.allclose(mine["vwap"], theirs["vwap"], atol=1e-6)


@pytest.mark.parametrize(
    ("timespan", "at", "start", "end"),
    [
        ("day", ms(2024, 3, 8, 15), ms(2024, 3, 8, 5), ms(2024, 3, 9, 5)),
        ("day", ms(2024, 3, 11, 15), ms(2024, 3, 11, 4), ms(2024, 3, 12, 4)),
        ("day", ms(2024, 3, 10, 15), ms(2024, 3, 10, 5), ms(2024, 3, 11, 4)),  # 23 hours long
        ("day", ms(2024, 7, 3, 3, 59), ms(2024, 7, 2, 4), ms(2024, 7, 3, 4)),
        ("week", ms(2024, 3, 14, 15), ms(2024, 3, 10, 5), ms(2024, 3, 17, 4)),
        ("month", ms(2024, 3, 14, 15), ms(2024, 3, 1, 5), ms(2024, 4, 1, 4)),
        ("year", ms(2024, 3, 14, 15), ms(2024, 1, 1, 5), ms(2025, 1, 1, 5)),
        ("hour", ms(2024, 3, 14, 13, 30), ms(2024, 3, 14, 13), ms(2024, 3, 14, 14)),
    ],
)
def test_stock_windows_follow_new_yorks_clock(timespan: str, at: int, start: int, end: int) -> None:
    assert window_starts(np.array([at]), 1, timespan, "stocks").tolist() == [start]  # type: ignore[arg-type]
    assert window_end(start, 1, timespan, "stocks") == end  # type: ignore[arg-type]


def test_weeks_start_on_sunday_and_days_at_midnight_utc() -> None:
    at = np.array([ms(2024, 5, 15, 12)])
    assert window_starts(at, 1, "week", "forex").tolist() == [ms(2024, 5, 12)]
    assert window_starts(at, 1, "day", "crypto").tolist() == [ms(2024, 5, 15)]


def test_the_sample_days_of_a_stock_are_new_yorks() -> None:
    bars = truth.minute_bars("SPY", ms(2013, 10, 4), ms(2013, 10, 12))
    days = fold(bars, 1, "day", "stocks").to_frame()
    assert days["ts"].to_list() == [
        datetime(2013, 10, 4, 4, tzinfo=UTC) + timedelta(days=n) for n in (0, 3, 4, 5, 6, 7)
    ]


@pytest.mark.parametrize("ticker", ["C:GBPUSD", "X:ETHUSD", "IBM"])
def test_seconds_fold_into_their_minutes(ticker: str) -> None:
    minutes = truth.minute_bars(ticker, ms(2013, 10, 8), ms(2013, 10, 9))
    seconds = fold_ticks(ticks_of(ticker, minutes, 0), 1_000)
    folded = fold(seconds, 1, "minute", "forex")
    for column in ("ts", "open", "high", "low", "close", "trades"):
        assert np.array_equal(getattr(folded, column), getattr(minutes, column))
    assert np.allclose(folded.volume, minutes.volume, atol=1e-6)

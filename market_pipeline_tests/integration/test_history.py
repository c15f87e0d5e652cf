"""History end to end: vendor → NATS → ClickHouse, every timeframe, against an independent truth."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest

from market_pipeline.market.timeframes import DERIVED
from market_pipeline_tests.integration.world import (
    World,
    assert_bars_equal,
    day_range,
    fold_independently,
    truth,
    utc,
)

EURUSD, BTCUSD, SPY = "EURUSD", "BTCUSD", "SPY"
TICKERS = {EURUSD: "C:EURUSD", BTCUSD: "X:BTCUSD", SPY: "SPY"}


def test_three_markets_in_every_timeframe_equal_the_truth(world: World) -> None:
    """Across the change to summer time, a weekend and a month's end."""
    days = {key: day_range("2024-02-25", "2024-03-16") for key in TICKERS}
    report = world.load(days)
    derived = world.derive(days)
    for key, ticker in TICKERS.items():
        minutes = truth(ticker, days[key])
        assert_bars_equal(world.bars(key, "1m"), minutes, f"{key} 1m")
        assert report.symbols[key].counts.new == minutes.height
        for timeframe in DERIVED:
            expected = fold_independently(minutes, timeframe)
            assert_bars_equal(world.bars(key, timeframe), expected, f"{key} {timeframe}")
            assert derived.by_symbol[(key, timeframe)].new == expected.height


def test_a_reload_of_equal_data_writes_no_row(world: World) -> None:
    days = {EURUSD: day_range("2024-03-04", "2024-03-08")}
    world.load(days)
    world.derive(days)
    before = world.count()
    again, derived = world.load(days), world.derive(days)
    assert world.count() == before
    assert again.counts.written == 0
    assert again.counts.unchanged == again.counts.rows > 5000
    assert all(counts.written == 0 for counts in derived.timeframes.values())


def test_restated_bars_are_changed_and_counted_exactly(world: World) -> None:
    days = {EURUSD: day_range("2024-03-04", "2024-03-05")}
    world.load(days)
    world.derive(days)
    before = world.bars(EURUSD, "1m")
    moments = [utc("2024-03-04T10:00:00"), utc("2024-03-04T10:01:00"), utc("2024-03-05T13:30:00")]
    for moment in moments:
        world.vendor.restate("C:EURUSD", moment, high=2.5)
    report = world.load(days)
    assert report.counts.restated == 3
    assert report.counts.written == 3
    after = world.bars(EURUSD, "1m")
    changed = after.filter(pl.Series(after["high"] != before["high"]))
    assert changed["ts"].to_list() == moments
    assert changed["high"].to_list() == [2.5] * 3
    assert (changed["revision"] > before.filter(pl.col("ts").is_in(moments))["revision"]).all()
    derived = world.derive(days)
    # two windows of each timeframe up to an hour; both moments share one day's week
    assert derived.timeframes["5m"].restated == 2
    assert derived.timeframes["1d"].restated == 2
    assert derived.timeframes["1w"].written <= 1
    assert world.bars(EURUSD, "1d")["high"].max() == 2.5


def test_a_withdrawn_bar_disappears_and_comes_back(world: World) -> None:
    days = {EURUSD: day_range("2024-03-04", "2024-03-04")}
    world.load(days)
    world.derive(days)
    before = world.bars(EURUSD, "1m")
    start = utc("2024-03-04T10:00:00")
    world.vendor.withdraw("C:EURUSD", start, start + timedelta(minutes=5))
    report = world.load(days)
    assert report.counts.withdrawn == 5
    gone = world.bars(EURUSD, "1m")
    assert gone.height == before.height - 5
    derived = world.derive(days)
    assert derived.timeframes["5m"].withdrawn == 1
    assert world.bars(EURUSD, "5m").filter(pl.col("ts") == start).height == 0
    assert_bars_equal(world.bars(EURUSD, "1h"), fold_independently(gone.drop("symbol"), "1h"), "1h after")
    # asking again changes nothing; the vendor's return of the bars is a new revision
    assert world.load(days).counts.written == 0
    world.vendor.restore("C:EURUSD", start, start + timedelta(minutes=5))
    assert world.load(days).counts.new == 5
    assert_bars_equal(world.bars(EURUSD, "1m"), truth("C:EURUSD", days[EURUSD]), "1m restored")
    world.derive(days)
    assert_bars_equal(
        world.bars(EURUSD, "5m"), fold_independently(truth("C:EURUSD", days[EURUSD]), "5m"), "5m restored"
    )


@pytest.mark.parametrize("hours", [6])
def test_the_running_day_is_never_taken_for_finished(world: World, hours: int) -> None:
    """Loaded at 06:02:30: the running minute has no bar, unsettled minutes are incomplete, no day bar is stored."""
    now = utc("2024-03-05T00:00:00") + timedelta(hours=hours, minutes=2, seconds=30)
    world.vendor.set_now(now)
    days = {BTCUSD: day_range("2024-03-04", "2024-03-05")}
    report = world.load(days, clock=lambda: now)
    assert report.symbols[BTCUSD].days.sort("date")["partial"].to_list() == [False, True]
    world.derive(days, clock=lambda: now)
    minutes = world.bars(BTCUSD, "1m")
    assert minutes["ts"].max() < now - timedelta(minutes=1)
    assert world.bars(BTCUSD, "1d")["ts"].to_list() == [utc("2024-03-04T00:00:00")]
    assert world.bars(BTCUSD, "1h")["ts"].max() == utc("2024-03-05T05:00:00")

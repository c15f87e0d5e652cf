"""The seam between history and live time, in the middle of a minute, an hour, a day and a week, until all have closed.

The vendor's clock moves as fast as the collector takes what comes: two hours of ticks in seconds. Everything between
the vendor and ClickHouse is the real thing, and every bar of every timeframe is held against the simulator's own truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from market_pipeline.live.build import build_services
from market_pipeline.live.thread import LiveThread
from market_pipeline.market.timeframes import DERIVED, TIMEFRAMES
from market_pipeline.settings import LiveSettings, StreamSettings
from market_pipeline.simulator.truth import minutes as true_minutes
from market_pipeline_tests.integration.road import MINUTE, StepClock, fact, wait_for
from market_pipeline_tests.integration.world import World, assert_bars_equal, day_range, fold_independently, utc

SERVICES = ("collector", "aggregator", "bridge", "repair")
# Without a closed hour, so that a week ends: one with trades in every minute, one that lacks some.
TICKERS = {"ETHUSD": "X:ETHUSD", "XRPUSD": "X:XRPUSD"}
INSTRUMENTS = """
instruments:
  - {symbol: ETH/USD, asset_class: crypto, vendor_ticker: "X:ETHUSD", calendar: crypto, history_start: 2024-01-01}
  - {symbol: XRP/USD, asset_class: crypto, vendor_ticker: "X:XRPUSD", calendar: crypto, history_start: 2024-01-01}
"""
WEEK = utc("2024-03-10T00:00:00")
LOADED = day_range("2024-03-10", "2024-03-16")
BEGAN = utc("2024-03-16T22:10:30")  # a Saturday: the week ends with it
SETTLED = BEGAN.replace(minute=5, second=0)  # the first minute that had not settled when history was loaded
LIVE = BEGAN.replace(minute=11, second=0)  # the first minute that live time has whole


@dataclass
class Streaming:
    """Live services between a vendor whose clock is moved and a ClickHouse."""

    world: World
    live: LiveThread
    clock: StepClock

    def until(self, end: datetime) -> None:
        """Let it become `end`, once everything that the vendor sent before it has been collected."""
        vendor = self.world.vendor
        vendor.advance(end, subscriptions=2 * len(TICKERS))
        sent = vendor.wait_advanced()["sent_total"]
        wait_for(lambda: fact(self.live, "collector", "ticks") == sent, self.live, f"{sent} ticks published")
        self.clock.now = end

    def wait_for_truth(self, end: datetime) -> None:
        """Wait until every bar that has closed by `end` is right, and nothing more is to come of it."""
        said = [""]

        def right() -> bool:
            try:
                for key in TICKERS:
                    assert_right(self.world, key, end)
            except AssertionError as error:
                said[0] = str(error)
                return False
            return True

        try:
            wait_for(right, self.live, "all bars right", 1.0)
        except AssertionError as error:
            raise AssertionError(f"{said[0]}\n{error}") from None
        for service, name in (("repair", "windows_waiting"), ("aggregator", "windows_due")):
            wait_for(
                lambda service=service, name=name: fact(self.live, service, name) == 0, self.live, f"no {name}", 0.1
            )
        for key in TICKERS:
            assert_right(self.world, key, end)


def test_no_bar_is_missing_doubled_or_wrong_at_the_seam_in_any_timeframe(world: World, tmp_path: Path) -> None:
    file = tmp_path / "instruments.yaml"
    file.write_text(INSTRUMENTS)
    live_settings = LiveSettings(
        # The clock leaps by an hour: what counts time on it must not take that for silence or a wrong clock.
        ahead=timedelta(days=1),
        silent_s=1e7,
        repair_every_s=0.2,
        look_back=timedelta(days=1),
    )
    world.settings = world.settings.model_copy(
        update={
            "instruments_file": file,
            "live": live_settings,
            "stream": StreamSettings(silence_s=120, lease_ttl_s=30),
        }
    )
    clock = StepClock(BEGAN)
    world.vendor.set_now(BEGAN)
    world.vendor.set_settle(1.0)  # every young bar of the vendor's lacks something yet
    wanted = dict.fromkeys(TICKERS, LOADED)
    world.load(wanted, clock=clock)
    world.derive(wanted, clock=clock)
    for code in ("1d", "1w"):
        assert not world.bars("ETHUSD", code).filter(pl.col("ts") + TIMEFRAMES[code].length > BEGAN).height

    services = build_services(world.settings, SERVICES, clock=clock, replayed=True)
    with LiveThread(world.settings, services) as live:
        stream = Streaming(world, live, clock)
        wait_for(lambda: fact(live, "collector", "crypto_connected") == 1, live, "a connection to the vendor")
        # The hour has closed; the window of 4h, the day and the week are under way.
        stream.until(utc("2024-03-16T23:17:20"))
        stream.wait_for_truth(utc("2024-03-16T23:15:00"))
        # All have closed, and what was asked for has settled.
        stream.until(utc("2024-03-17T00:33:40"))
        stream.wait_for_truth(utc("2024-03-17T00:30:00"))
        assert fact(live, "collector", "losses") == 0
    for key in TICKERS:
        assert_each_once(world, key)


def assert_right(world: World, key: str, end: datetime) -> None:
    """Every bar of the week that has closed by `end` is the truth's and its parents', complete if they are whole."""
    truth = true_minutes(TICKERS[key], WEEK, end)
    stored = {code: world.bars(key, code).filter(pl.col("ts") >= WEEK) for code in ("1m", *DERIVED)}
    minutes = stored["1m"].filter(pl.col("ts") < end)
    assert_bars_equal(minutes, truth, f"{key} 1m")
    assert minutes["complete"].all(), f"{key} 1m: {minutes.filter(~pl.col('complete'))['ts'].to_list()} incomplete"
    winners = minutes.group_by("source").agg(first=pl.col("ts").min(), last=pl.col("ts").max())
    assert {source: (first, last) for source, first, last in winners.rows()} == {
        "vendor_historical": (WEEK, SETTLED - MINUTE),
        "live_gap_filled": (SETTLED, LIVE - MINUTE),
        "live_aggregated": (LIVE, end - MINUTE),
    }
    for code in DERIVED:
        closed = pl.col("ts") + TIMEFRAMES[code].length <= end
        ours = stored[code].filter(closed)
        folded = fold_independently(truth, code).filter(closed)
        assert_bars_equal(ours, folded, f"{key} {code}")
        whole = (folded["minutes"] == TIMEFRAMES[code].length // MINUTE).to_list()
        assert ours["complete"].to_list() == whole, f"{key} {code}: complete"
        parent = TIMEFRAMES[code].parent_code or ""
        assert_bars_equal(ours, fold_independently(stored[parent], code).filter(closed), f"{key} {code} of {parent}")
    spanning = [code for code in DERIVED if stored[code].filter(_spans_the_seam(code, end)).height == 1]
    assert spanning == [code for code in DERIVED if _closes(code) <= end], f"{key}: windows around the seam"


def assert_each_once(world: World, key: str) -> None:
    """No bar wins twice, no source has a bar twice, and no version of a bar says two things.

    Repair and the aggregator may derive the same window at the same moment, through two bridges: the row is then
    written twice, alike, and its key makes one of it.
    """
    rows = world.query(
        "SELECT timeframe, source, uniqExact(ts, revision) AS versions, uniqExact(ts) AS opens, "
        "uniqExact((ts, revision, open, high, low, close, volume, vwap, trades, complete, is_deleted)) AS contents "
        "FROM bars WHERE symbol = {s:String} GROUP BY timeframe, source",
        s=key,
    )
    assert rows.filter(pl.col("contents") != pl.col("versions")).rows() == [], f"{key}: a version says two things"
    final = world.query(
        "SELECT timeframe, source, count() AS rows FROM bars FINAL WHERE symbol = {s:String} AND NOT is_deleted "
        "GROUP BY timeframe, source",
        s=key,
    )
    joined = final.join(rows.select("timeframe", "source", "opens"), on=["timeframe", "source"])
    assert joined.filter(pl.col("rows") != pl.col("opens")).rows() == [], f"{key}: bars doubled or withdrawn"
    assert set(final.filter(pl.col("timeframe") != "1m")["source"]) == {"derived"}
    for code in ("1m", *DERIVED):
        winners = world.bars(key, code)
        assert winners["ts"].n_unique() == winners.height, f"{key} {code}"


def _closes(code: str) -> datetime:
    """Return the end of the window that was under way when live time began."""
    length = TIMEFRAMES[code].length
    return WEEK + ((BEGAN - WEEK) // length + 1) * length


def _spans_the_seam(code: str, end: datetime) -> pl.Expr:
    length = TIMEFRAMES[code].length
    return (pl.col("ts") <= BEGAN) & (pl.col("ts") + length > BEGAN) & (pl.col("ts") + length <= end)

"""The daily look at all of history, and the repair that works on what it finds."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from market_pipeline.history import monitor_gaps, repair_gaps
from market_pipeline.history.monitor import APART, joined
from market_pipeline_tests.integration.repairing import KEY, TICKER, Live, live_world
from market_pipeline_tests.integration.test_live_repair import DAY, at
from market_pipeline_tests.integration.world import World, assert_bars_equal, day_range, truth, utc


def monitor(live: Live, **more: Any) -> dict[str, Any]:
    report = monitor_gaps(live.world.settings, run_id=secrets.token_hex(4), clock=live.clock, **more)
    (row,) = report.table.iter_rows(named=True)
    return row


def repair(live: Live) -> int:
    run = secrets.token_hex(4)
    report = repair_gaps(live.world.settings, run_id=run, root_run_id=run, clock=live.clock)
    return report.asked_requests


def test_a_symbol_that_was_only_streamed_is_watched_and_repaired(world: World, tmp_path: Path) -> None:
    live = live_world(world, tmp_path, at("11:00:00"))
    live.stream(at("08:00:00"), at("10:00:00"), without=[(at("08:30:00"), at("08:33:00"))])
    live.stream(at("10:00:30"), at("10:02:00"))
    assert repair(live) == 0, "nobody has asked, and nobody has looked"
    row = monitor(live)
    # three minutes, and from 10:02 on up to settle and lateness ago
    assert (row["start"], row["end"], row["missing"]) == (at("08:00:00"), at("10:45:00"), 3 + 43)
    assert row["open"] == 3 + 43 + 1, "a minute that is not complete is asked for too"
    assert row["expected"] == 165
    assert repair(live) == 1
    row = monitor(live)
    assert (row["missing"], row["open"], row["confirmed"], row["gaps"]) == (0, 0, 0, 0)
    minutes = world.bars(KEY, "1m")
    true = truth(TICKER, DAY).filter((pl.col("ts") >= at("08:00:00")) & (pl.col("ts") < at("10:45:00")))
    assert_bars_equal(minutes, true, "repaired")
    assert minutes["complete"].all()


def test_what_lies_between_two_loads_nobody_has_asked_for(world: World, tmp_path: Path) -> None:
    live = live_world(world, tmp_path, at("11:00:00"))
    world.load(
        {KEY: [*day_range("2024-01-02", "2024-01-03"), *day_range("2024-03-11", "2024-03-12")]}, clock=live.clock
    )
    row = monitor(live)
    assert (row["missing"], row["gaps"]) == (0, 0)
    assert row["unwatched"] > 60 * 1440
    assert repair(live) == 0
    row = monitor(live, whole=True)
    assert row["missing"] > 40 * 1440
    assert row["unwatched"] == 0
    # each comes to an end: a minute the vendor lacks is confirmed, and then nobody asks again
    world.vendor.remove(TICKER, at("00:00:00") - timedelta(days=8), at("00:00:00") - timedelta(days=7))
    assert repair(live) == 3, "a few large requests, though there is a gap a week"
    assert repair(live) == 1
    row = monitor(live, whole=True)
    assert (row["open"], row["confirmed"], row["missing"]) == (0, 1440, 1440)
    assert repair(live) == 0
    between = (pl.col("ts") >= utc("2024-01-02T00:00:00")) & (pl.col("ts") < utc("2024-03-04T00:00:00"))
    true = truth(TICKER, day_range("2024-01-02", "2024-03-03"))
    assert_bars_equal(world.bars(KEY, "1m").filter(between), true, "between")


def test_stretches_that_belong_together_are_joined_up_to_the_present() -> None:
    noon, day = datetime(2024, 3, 4, 12, tzinfo=UTC), timedelta(days=1)
    stretches = [(noon, noon + day), (noon + 3 * day, noon + 4 * day)]
    later = (noon + 4 * day + APART + day, noon + 5 * day + APART + day)
    assert joined([], noon, APART) == []
    assert joined(stretches, noon + 5 * day, APART) == [(noon, noon + 5 * day)]
    assert joined(stretches, noon + 3 * day + day / 2, APART) == [(noon, noon + 3 * day + day / 2)]
    assert joined([*stretches, later], later[1] + APART + day, APART) == [(noon, noon + 4 * day), later]
    assert joined([*stretches, later], later[1] + APART + day, None) == [(noon, later[1] + APART + day)]

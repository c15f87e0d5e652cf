"""Holes are found and repaired exactly; what the vendor truly lacks is asked for a bounded number of times."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from market_pipeline.errors import RangeNotLoaded, StillSpooled, VendorAuthError
from market_pipeline.history import RepairReport, asking, repair_gaps
from market_pipeline.history import repair as history_repair
from market_pipeline.history.reports import FailedRequest, SymbolLoad
from market_pipeline.market.timeframes import DERIVED
from market_pipeline.settings import Settings
from market_pipeline_tests.integration.world import (
    Days,
    World,
    assert_bars_equal,
    day_range,
    fold_independently,
    truth,
    utc,
)

# A pair that the simulator never lacks a minute of.
KEY, TICKER = "USDCHF", "C:USDCHF"
OTHER = "GBPUSD"
AGGS = "/v2/aggs"


def repair(world: World, *symbols: str) -> RepairReport:
    run = secrets.token_hex(4)
    return repair_gaps(world.settings, symbols=symbols or [KEY], run_id=run, root_run_id=run)


def ms(moment: datetime) -> int:
    """Return a moment as it stands in the path of a request."""
    return int(moment.timestamp() * 1000)


def punch(world: World, start: str, minutes: int, key: str = KEY) -> None:
    first = utc(start)
    last = first + timedelta(minutes=minutes)
    world.command(
        f"DELETE FROM bars WHERE symbol = '{key}' AND timeframe = '1m' "
        f"AND ts >= '{first:%Y-%m-%d %H:%M:%S}' AND ts < '{last:%Y-%m-%d %H:%M:%S}'"
    )


def test_a_hole_in_the_middle_of_a_month_is_repaired_exactly(world: World) -> None:
    days = {KEY: day_range("2024-03-01", "2024-03-31")}
    world.load(days)
    world.derive(days)
    rows = world.count()
    punch(world, "2024-03-13T09:17:00", 95)
    assert world.bars(KEY, "1m").height == truth(TICKER, days[KEY]).height - 95
    world.vendor.clear_requests()
    report = repair(world)
    assert (report.found_gaps, report.found_minutes, report.repaired_minutes) == (1, 95, 95)
    assert report.load.counts.new == 95
    assert report.load.counts.rows == 95, "only the hole is asked for"
    asked = [r for r in world.vendor.requests() if AGGS in r.path]
    assert len(asked) == 1
    assert world.count() == rows, "nothing else was written"
    assert_bars_equal(world.bars(KEY, "1m"), truth(TICKER, days[KEY]), "repaired")
    for timeframe in DERIVED:
        assert_bars_equal(
            world.bars(KEY, timeframe), fold_independently(truth(TICKER, days[KEY]), timeframe), timeframe
        )
    assert repair(world).found_gaps == 0


def test_a_hole_that_was_derived_is_derived_again_when_it_is_filled(world: World) -> None:
    days = {KEY: day_range("2024-03-11", "2024-03-12")}
    start = utc("2024-03-11T10:00:00")
    world.vendor.withdraw(TICKER, start, start + timedelta(minutes=7))
    world.load(days)
    world.derive(days)
    five = world.bars(KEY, "5m").filter(ts=start + timedelta(minutes=5))
    assert five["complete"].to_list() == [False]
    world.vendor.restore(TICKER, start, start + timedelta(minutes=7))
    report = repair(world)
    assert report.repaired_minutes == 7
    assert_bars_equal(world.bars(KEY, "1h"), fold_independently(truth(TICKER, days[KEY]), "1h"), "1h")
    assert world.bars(KEY, "5m").filter(ts=start + timedelta(minutes=5))["complete"].to_list() == [True]


def lack_and_load(world: World, days: Days, *holes: datetime) -> None:
    """Load and derive days of which the vendor lacks seven minutes from each hole on, and then has them."""
    for hole in holes:
        world.vendor.withdraw(TICKER, hole, hole + timedelta(minutes=7))
    world.load({KEY: days})
    world.derive({KEY: days})
    for hole in holes:
        world.vendor.restore(TICKER, hole, hole + timedelta(minutes=7))


def test_what_has_landed_is_derived_though_another_gap_could_not_be_asked_for(world: World) -> None:
    first, second = utc("2024-01-10T10:00:00"), utc("2024-03-13T10:00:00")  # too far apart for one request
    days = [*day_range("2024-01-10", "2024-01-10"), *day_range("2024-03-13", "2024-03-13")]
    lack_and_load(world, days, first, second)
    world.vendor.add_fault("server_error", path=AGGS, skip=1)
    with pytest.raises(RangeNotLoaded, match="2024-03-13 10:00"):
        repair(world)
    world.vendor.clear_faults()
    hours = world.bars(KEY, "1h").filter(pl.col("ts").is_in([first, second]))
    assert hours["complete"].to_list() == [True, False]
    repair(world)
    assert_bars_equal(world.bars(KEY, "1h"), fold_independently(truth(TICKER, days), "1h"), "1h")


def standing(world: World) -> list[tuple[Any, ...]]:
    """Return (start, minutes, state, attempts, failures) of the standing gaps, in order."""
    return world.query(
        "SELECT start_ts, minutes, state, attempts, failures FROM gaps FINAL "
        "WHERE state != 'repaired' AND symbol = {s:String} ORDER BY start_ts",
        s=KEY,
    ).rows()


def test_what_the_plan_does_not_include_is_given_up_and_every_other_gap_repaired(world: World) -> None:
    """Of two symbols; the refused gap is the oldest, and near enough to others to be asked for together with them."""
    old, next_, new = (utc(f"2024-03-{day}T10:00:00") for day in (11, 12, 13))
    days = day_range("2024-03-11", "2024-03-13")
    world.load({OTHER: days})
    lack_and_load(world, days, old, next_, new)
    punch(world, "2024-03-13T09:17:00", 9, OTHER)
    world.vendor.add_fault("forbidden", ticker=TICKER, path=f"{AGGS}.*/{ms(old)}/")
    report = repair(world, KEY, OTHER)
    assert (report.repaired_minutes, report.given_up_minutes) == (23, 7)
    assert report.load.symbols[KEY].counts.new == 14
    days_of = report.load.symbols[KEY].days
    assert days_of["missing"].to_list() == [7, 0, 0], "each minute counts once, however often it was asked for"
    assert standing(world) == [(old, 7, "given_up", 1, 1)]
    (note,) = world.query("SELECT note FROM gaps FINAL WHERE state = 'given_up'")["note"].to_list()
    assert "plan" in note
    assert_bars_equal(world.bars(OTHER, "1m"), truth(f"C:{OTHER}", days), "the other symbol")
    true = truth(TICKER, days).filter((pl.col("ts") < old) | (pl.col("ts") >= old + timedelta(minutes=7)))
    assert_bars_equal(world.bars(KEY, "1m"), true, "the newer gaps")

    world.vendor.clear_requests()
    assert repair(world, KEY, OTHER).asked_requests == 0
    world.vendor.clear_faults()
    assert repair(world, KEY, OTHER).asked_requests == 0, "not unless it is wanted"
    again = repair_gaps(world.settings, retry_given_up=True, run_id="again", root_run_id="again")
    assert again.repaired_minutes == 7
    assert_bars_equal(world.bars(KEY, "1h"), fold_independently(truth(TICKER, days), "1h"), "derived too")


def test_a_symbol_that_the_plan_does_not_include_is_given_up_with_few_requests(world: World) -> None:
    days = day_range("2024-03-11", "2024-03-15")
    holes = [utc(f"2024-03-{day}T{hour}:00:00") for day in range(11, 16) for hour in (10, 12, 14)]
    lack_and_load(world, days, *holes)
    world.vendor.add_fault("forbidden", ticker=TICKER, path=AGGS)
    report = repair(world)
    assert (report.asked_requests, report.given_up_minutes, len(standing(world))) == (3, 105, 15)
    assert {state for _, _, state, _, _ in standing(world)} == {"given_up"}


def test_a_gap_whose_requests_always_fail_is_given_up_and_an_outage_is_no_failure_of_it(world: World) -> None:
    days, hole = day_range("2024-03-11", "2024-03-12"), utc("2024-03-11T10:00:00")
    lack_and_load(world, days, hole)
    history = world.settings.history.model_copy(update={"gap_failures": 2})
    world.settings = world.settings.model_copy(update={"history": history})
    world.vendor.add_fault("server_error", skip=1)  # the probe at the start is answered, and nothing after it
    with pytest.raises(RangeNotLoaded):
        repair(world)
    assert standing(world) == [(hole, 7, "open", 1, 0)]
    world.vendor.clear_faults()
    world.vendor.add_fault("server_error", path=f"{AGGS}.*/{ms(hole)}/")
    for failures, state in ((1, "open"), (2, "given_up")):
        with pytest.raises(RangeNotLoaded):
            repair(world)
        assert standing(world) == [(hole, 7, state, 1, failures)]
    assert repair(world).asked_requests == 0
    world.vendor.clear_faults()
    world.load({KEY: days})
    assert standing(world) == [], "a load that brings the minutes ends it"


def test_a_key_that_the_vendor_does_not_know_ends_a_repair_at_once(world: World) -> None:
    days = day_range("2024-03-13", "2024-03-13")
    world.load({KEY: days, OTHER: days})
    for symbol in (KEY, OTHER):
        punch(world, "2024-03-13T09:17:00", 9, symbol)
    world.vendor.add_fault("unauthorized", path=AGGS)
    world.vendor.clear_requests()
    with pytest.raises(VendorAuthError):
        repair(world, KEY, OTHER)
    assert len([r for r in world.vendor.requests() if AGGS in r.path]) <= 2


def die_before_deriving(settings: Settings) -> None:
    """Repair, and be killed between the last minute's landing and the first derived bar."""

    async def die(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    history_repair.derive_symbol = die  # type: ignore[assignment]
    repair_gaps(settings, symbols=[KEY], run_id="killed", root_run_id="killed")


def test_what_a_killed_repair_has_loaded_the_next_one_derives(world: World) -> None:
    days, hole = day_range("2024-03-11", "2024-03-12"), utc("2024-03-11T10:00:00")
    lack_and_load(world, days, hole)
    process = multiprocessing.get_context("spawn").Process(target=die_before_deriving, args=(world.settings,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert_bars_equal(world.bars(KEY, "1m"), truth(TICKER, days), "landed")
    assert world.bars(KEY, "1h").filter(ts=hole)["complete"].to_list() == [False]
    report = repair(world)
    assert report.found_gaps == 0, "the ledger knows the minutes as repaired"
    for timeframe in DERIVED:
        assert_bars_equal(world.bars(KEY, timeframe), fold_independently(truth(TICKER, days), timeframe), timeframe)
    assert world.bars(KEY, "1h").filter(ts=hole)["complete"].to_list() == [True]
    assert repair(world).derived.minutes_read == 0, "once"


def test_what_may_land_after_a_repair_is_derived_by_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    days, hole = day_range("2024-03-11", "2024-03-12"), utc("2024-03-11T10:00:00")
    lack_and_load(world, days, hole)

    async def spool(rt: Any, instrument: Any, ranges: list[Any], load: SymbolLoad, *args: Any, **more: Any) -> None:
        load.failed.append(FailedRequest(*ranges[0], StillSpooled("NATS was away", batches=1)))
        raise RangeNotLoaded("spooled", [(KEY, *ranges[0])])

    with monkeypatch.context() as away:
        away.setattr(asking, "load_symbol", spool)
        with pytest.raises(RangeNotLoaded):
            repair(world)
    world.load({KEY: days})  # by now it has landed
    assert repair(world).found_gaps == 0
    assert world.bars(KEY, "1h").filter(ts=hole)["complete"].to_list() == [True]


def test_a_minute_that_the_vendor_lacks_is_confirmed_and_then_left_alone(world: World) -> None:
    days = {KEY: day_range("2024-03-11", "2024-03-12")}
    start = utc("2024-03-11T10:00:00")
    world.vendor.remove(TICKER, start, start + timedelta(minutes=3))
    first = world.load(days)
    assert first.symbols[KEY].missing == 3
    assert first.symbols[KEY].gaps.select("minutes", "cause", "state", "attempts").rows() == [
        (3, "not_loaded", "open", 1)
    ]
    assert first.symbols[KEY].coverage == 1 - 3 / first.symbols[KEY].expected
    second = repair(world)
    assert (second.found_minutes, second.confirmed_minutes, second.repaired_minutes) == (3, 3, 0)
    world.vendor.clear_requests()
    for _ in range(3):
        assert repair(world).asked_requests == 0
    assert not [r for r in world.vendor.requests() if AGGS in r.path], "the vendor is not asked again"
    gaps = world.query("SELECT minutes, cause, state, attempts FROM gaps FINAL WHERE state != 'repaired'")
    assert gaps.rows() == [(3, "vendor_missing", "confirmed", 2)]


def test_an_answer_counts_once_however_often_its_run_is_executed_again(world: World) -> None:
    days, start = {KEY: day_range("2024-03-01", "2024-04-30")}, utc("2024-03-11T10:00:00")
    world.vendor.remove(TICKER, start, start + timedelta(minutes=3))
    world.vendor.add_fault("server_error", path=AGGS, skip=1)
    with pytest.raises(RangeNotLoaded):
        world.load(days, root="a")
    world.vendor.clear_faults()
    for _ in range(2):
        again = world.load(days, root="a")
        assert again.symbols[KEY].missing == 3
        gaps = world.query("SELECT minutes, cause, state, attempts FROM gaps FINAL WHERE state != 'repaired'")
        assert gaps.rows() == [(3, "not_loaded", "open", 1)]
    assert repair(world).confirmed_minutes == 3, "the second answer"


def test_weekends_and_the_unsettled_present_are_no_gaps(world: World) -> None:
    now = utc("2024-03-12T15:07:20")
    world.vendor.set_now(now)
    days = {KEY: day_range("2024-03-07", "2024-03-12")}
    report = world.load(days, clock=lambda: now)
    assert report.symbols[KEY].missing == 0
    frame = report.symbols[KEY].days
    assert frame.filter(pl.col("date") == utc("2024-03-09T00:00:00").date())["expected"].to_list() == [0]
    # 15:07:20 less settle and lateness
    assert frame["expected"].to_list()[-1] == 14 * 60 + 53


def test_a_minute_is_never_confirmed_by_a_request_that_failed(world: World) -> None:
    """Two loads fail for a month: its minutes are missing, but nobody has answered for them."""
    days = {KEY: day_range("2024-03-01", "2024-04-30")}
    # the first request lands, every later one fails
    world.vendor.add_fault("server_error", path=AGGS, skip=1)
    for root in ("a", "b"):
        world.vendor.clear_faults()
        world.vendor.add_fault("server_error", path=AGGS, skip=1)
        with pytest.raises(RangeNotLoaded):
            world.load(days, root=root)
    gaps = world.query("SELECT cause, state, max(attempts) AS attempts FROM gaps FINAL GROUP BY cause, state")
    assert gaps.rows() == [("not_loaded", "open", 0)]
    world.vendor.clear_faults()
    world.load(days, root="c")
    assert_bars_equal(world.bars(KEY, "1m"), truth(TICKER, days[KEY]), "after the third")
    assert world.query("SELECT count() AS n FROM gaps FINAL WHERE state != 'repaired'").item() == 0

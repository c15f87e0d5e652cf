"""The seam between history and live time, and every minute that live time lacks, against the simulator's truth."""

from __future__ import annotations

import asyncio
import secrets
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr

from market_pipeline.bus.losses import LossInterval
from market_pipeline.errors import RangeNotLoaded, StoreUnreachable, VendorAuthError
from market_pipeline.history import repair_gaps
from market_pipeline.history.derive import derive_symbol
from market_pipeline.live.repair import mending
from market_pipeline.market.timeframes import DERIVED, timeframe
from market_pipeline.settings import BreakerSettings
from market_pipeline_tests.integration.repairing import KEY, MINUTE, TICKER, Live, live_world
from market_pipeline_tests.integration.world import (
    World,
    assert_bars_equal,
    day_range,
    fold_independently,
    truth,
    utc,
)

DAY = day_range("2024-03-12", "2024-03-12")  # a Tuesday
DAYS = day_range("2024-03-10", "2024-03-12")  # all that is looked back at
PENDING, OPEN = "pending_settle", "open"


def at(time: str) -> datetime:
    return utc(f"2024-03-12T{time}")


def hourly_repair(live: Live) -> int:
    """Run the job of every hour; return its requests."""
    run = secrets.token_hex(4)
    report = repair_gaps(live.world.settings, run_id=run, root_run_id=run, clock=live.clock)
    return report.asked_requests


def assert_true_until(live: Live, end: datetime) -> None:
    """Every minute of the day up to `end` is the truth's, complete and there once; so is every closed window."""
    minutes = live.world.bars(KEY, "1m").filter(pl.col("ts") >= at("00:00:00"))
    true = truth(TICKER, DAY).filter(pl.col("ts") < end)
    assert_bars_equal(minutes, true, "minutes")
    assert minutes["complete"].all()
    for code in DERIVED:
        closed = pl.col("ts") + timeframe(code).length <= end
        true_bars = fold_independently(true, code).filter(closed)
        stored = live.world.bars(KEY, code).filter(closed & (pl.col("ts") >= at("00:00:00")))
        assert_bars_equal(stored, true_bars, code)
        assert stored["complete"].all(), code


def test_the_seam_and_a_disconnect_are_repaired_and_the_running_day_is_the_truth(world: World, tmp_path: Path) -> None:
    # History up to the middle of a minute, an hour and a day; live time from the middle of a later minute on.
    live = live_world(world, tmp_path, at("13:37:20"))
    world.load({KEY: DAYS}, clock=live.clock)
    live.turn(at("13:42:30"))
    live.stream(at("13:41:25"), at("13:42:00"))
    with live.repairing() as repair:
        repair.until(lambda: repair.fact("looks") >= 1)
        # 13:32 is the first REST minute that had not settled, 13:41 the first live one, which is not whole
        assert live.gaps() == [(at("13:32:00"), at("13:42:00"), PENDING, OPEN, 0)]
        assert repair.fact("requests") == 0, "too early to ask"
        assert repair.fact("open_minutes") == 10

    # Two and a half minutes without a connection, of which one minute has no tick at all.
    lost = (at("14:10:10"), at("14:12:40"))
    live.turn(at("15:20:05"))
    live.stream(at("13:42:00"), at("15:20:00"), without=[lost])
    live.lose(LossInterval(KEY, *lost, "disconnect", "s1"))
    world.derive({KEY: DAYS}, clock=live.clock)
    hour = world.bars(KEY, "1h").filter(ts=at("14:00:00"))
    assert hour["complete"].to_list() == [False]

    world.vendor.clear_requests()
    with live.repairing() as repair:
        repair.until(lambda: repair.fact("minutes_repaired") == 13 and repair.fact("losses_waiting") == 0)
        repair.looks(1)
        facts = repair.service.health().facts
        assert facts["open_gaps"] == 0
        assert facts["oldest_open_gap_s"] == 0
        assert live.asked() == 1, "what is missing is asked for together, and once"
    assert_true_until(live, at("15:20:00"))
    assert live.gaps() == []
    assert live.losses() == []
    # the seam was pending until it settled; what has no bar at all was then simply not loaded
    assert [gap[:3] for gap in live.gaps(["repaired"])] == [
        (at("13:32:00"), at("13:37:00"), PENDING),
        (at("13:37:00"), at("13:41:00"), "not_loaded"),
        (at("13:41:00"), at("13:42:00"), PENDING),
        (at("14:10:00"), at("14:13:00"), "lost"),
    ]
    sources = world.query("SELECT source, count() AS n FROM bars FINAL WHERE timeframe = '1m' GROUP BY source")
    assert dict(sources.rows())["live_gap_filled"] == 13, "nothing but what was missing is written"


def test_what_the_vendor_lacks_too_is_confirmed_and_nobody_asks_again(world: World, tmp_path: Path) -> None:
    live = live_world(world, tmp_path, at("09:00:00"))
    world.load({KEY: DAYS}, clock=live.clock)
    live.turn(at("11:00:05"))
    # 10:00 is not whole, 10:01 and 10:02 have no tick, and the vendor has none of them either
    live.stream(at("08:50:00"), at("11:00:00"), without=[(at("10:00:30"), at("10:03:00"))])
    live.lose(LossInterval(KEY, at("10:00:30"), at("10:03:00"), "disconnect"))
    world.vendor.remove(TICKER, at("10:00:00"), at("10:03:00"))
    fault = world.vendor.add_fault("server_error", path="/v2/aggs")
    with live.repairing() as repair:
        repair.until(lambda: repair.service.health().state == "waiting")
        assert any(KEY in problem or "USD/CHF" in problem for problem in repair.service.health().problems)
        assert live.gaps() == [(at("10:00:00"), at("10:03:00"), "lost", OPEN, 0)], "a failed request is no attempt"
        world.vendor.clear_faults(fault)
        repair.until(lambda: live.gaps() == [(at("10:00:00"), at("10:03:00"), "lost", OPEN, 1)])
        assert [loss.cause for loss in live.losses()] == ["disconnect"]
        live.turn(at("11:11:00"))  # the vendor's bars may have been late: asked again after the lateness only
        live.stream(at("11:00:00"), at("11:11:00"))
        repair.until(lambda: repair.fact("losses_settled") == 1)
        repair.looks(1)
        health = repair.service.health()
        assert (health.state, health.facts["minutes_confirmed"], health.facts["open_gaps"]) == ("running", 3, 0)
        assert [problem for problem in health.problems if "tick store" not in problem] == []
        # a minute that is there and not complete ends like one that is not there
        confirmed = [(at("10:00:00"), at("10:03:00"), "vendor_missing", "confirmed", 2)]
        assert live.gaps() == confirmed

        world.vendor.clear_requests()
        live.stream(at("11:11:00"), at("11:40:00"))
        live.turn(at("11:40:00"))
        repair.looks(2)
        assert hourly_repair(live) == 0
        repair.looks(2)
        assert live.gaps() == confirmed
        assert live.asked() == 0, "neither asks again, whichever looks first"
    bars = world.bars(KEY, "1m").filter(ts=at("10:00:00"))
    assert bars.select("source", "complete").rows() == [("live_aggregated", False)], "what is known stays"

    # the hour's job and the service agree as well when the vendor has them after all, for a load finds them
    world.vendor.restore(TICKER, at("10:00:00"), at("10:03:00"))
    world.load({KEY: DAYS}, clock=live.clock)
    assert live.gaps() == []
    world.derive({KEY: DAYS}, clock=live.clock)
    assert_true_until(live, at("11:40:00"))


def test_a_minute_with_a_tick_that_came_too_late_gives_way_to_the_vendors(world: World, tmp_path: Path) -> None:
    """Whatever its bar says: an aggregator that was started anew since knows nothing of it."""
    live = live_world(world, tmp_path, at("09:00:00"))
    world.load({KEY: DAYS}, clock=live.clock)
    live.turn(at("11:00:05"))
    live.stream(at("08:50:00"), at("11:00:00"))
    world.vendor.remove(TICKER, at("10:20:00"), at("10:21:00"))
    true = truth(TICKER, DAY)
    patched = true.filter(ts=at("10:10:00"))["high"][0] + 0.01
    world.vendor.restate(TICKER, at("10:10:00"), high=patched)  # as if the vendor's bar had the tick
    with live.repairing() as repair:
        repair.until(lambda: repair.fact("open_gaps") == 0 and repair.fact("looks") >= 1)
        live.lose(*(LossInterval(KEY, at(f"10:{m}:00"), at(f"10:{m + 1}:00"), "late") for m in (10, 20)))
        repair.until(lambda: repair.fact("minutes_repaired") == 1)
        live.turn(at("11:11:00"))
        live.stream(at("11:00:00"), at("11:11:00"))
        repair.until(lambda: repair.fact("losses_waiting") == 0 and repair.fact("minutes_confirmed") == 1)
    minutes = world.bars(KEY, "1m").filter(pl.col("ts") >= at("10:00:00"), pl.col("ts") < at("11:00:00"))
    told = minutes.filter((pl.col("source") != "live_aggregated") | ~pl.col("complete"))
    assert told.select("ts", "source", "complete").rows() == [
        (at("10:10:00"), "live_gap_filled", True),
        (at("10:20:00"), "live_aggregated", False),
    ]
    assert minutes.filter(ts=at("10:10:00"))["high"].to_list() == [patched]
    assert world.bars(KEY, "15m").filter(ts=at("10:15:00"))["complete"].to_list() == [False]
    assert world.bars(KEY, "15m").filter(ts=at("10:00:00")).select("high", "complete").rows() == [(patched, True)]
    assert live.losses() == []


def test_what_is_away_is_waited_for_and_named_and_nothing_is_left_to_derive(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    derivations: list[None] = []

    async def derive(*args: Any) -> None:
        derivations.append(None)
        if len(derivations) == 1:
            raise StoreUnreachable("away just now")
        await derive_symbol(*args)

    monkeypatch.setattr(mending, "derive_symbol", derive)  # between a load and its derivation
    live = live_world(world, tmp_path, at("11:00:05"))
    live.turn(at("11:00:05") + timedelta(seconds=5))
    live.stream(at("08:00:00"), at("11:00:00"), without=[(at("10:10:00"), at("10:12:00"))])
    live.lose(LossInterval(KEY, at("10:10:00"), at("10:12:00"), "overflow"))
    world.nats.kill()
    with live.repairing() as repair:
        repair.until(lambda: repair.service.health().state == "waiting")
        assert "NATS" in " ".join(repair.service.health().problems)
        world.nats.start()
        repair.until(lambda: repair.fact("looks") >= 2 and repair.fact("losses_waiting") == 0)
        health = repair.service.health()
        assert (health.state, health.facts["windows_waiting"]) == ("running", 0)
        assert len(derivations) == 2
        assert any("tick store" in problem for problem in health.problems)
        assert live.losses() == []
    # nothing was loaded before: the whole look back has been, up to the first live minute
    minutes = world.bars(KEY, "1m")
    begin = live.now - live.world.settings.live.look_back
    true = truth(TICKER, DAYS).filter((pl.col("ts") > begin - MINUTE) & (pl.col("ts") < at("11:00:00")))
    assert_bars_equal(minutes, true, "the look back")
    hours = world.bars(KEY, "1h").filter(pl.col("ts") >= at("08:00:00"))
    assert_bars_equal(hours, fold_independently(true, "1h").filter(pl.col("ts") >= at("08:00:00")), "1h")
    assert "lost" in {cause for _, _, cause, _, _ in live.gaps(["repaired"])}


def test_a_key_that_the_vendor_does_not_know_ends_it_at_once(world: World, tmp_path: Path) -> None:
    live = live_world(world, tmp_path, at("11:00:05"))
    assert set(asyncio.run(live.service().probe())) == {"clickhouse", "nats", "vendor"}
    live.stream(at("10:00:00"), at("11:00:00"))
    wrong = world.settings.vendor.model_copy(update={"api_key": SecretStr("not-the-key")})
    world.settings = world.settings.model_copy(update={"vendor": wrong})
    with pytest.raises(VendorAuthError), live.repairing() as repair:
        repair.until(lambda: repair.service.health().state == "failed")
    assert "not running" in repair.service.health().problems
    assert {gap[3:] for gap in live.gaps()} == {(OPEN, 0)}, "what was found is not lost"


def test_a_symbol_that_the_plan_does_not_include_is_asked_for_once_until_a_restart(
    world: World, tmp_path: Path
) -> None:
    live = live_world(world, tmp_path, at("11:00:05"))
    live.stream(at("08:50:00"), at("11:00:00"), without=[(at("10:00:00"), at("10:03:00"))])
    fault = world.vendor.add_fault("forbidden", path="/v2/aggs")
    with live.repairing() as repair:
        repair.looks(3)
        live.turn(at("12:00:05"))  # longer than any two questions lie apart
        repair.looks(3)
        assert live.asked() == 1
        (problem,) = [each for each in repair.service.health().problems if KEY in each]
        assert "plan" in problem
        assert "not asked again before a restart" in problem
        assert repair.service.health().state == "running"
    world.vendor.clear_faults(fault)
    with live.repairing() as repair:
        repair.until(lambda: world.bars(KEY, "1m").filter(ts=at("10:01:00")).height == 1)


def test_a_question_whose_answer_is_of_no_use_is_put_again_when_the_next_is_due(world: World, tmp_path: Path) -> None:
    live = live_world(world, tmp_path, at("11:00:05"))
    live.stream(at("08:50:00"), at("11:00:00"), without=[(at("10:00:00"), at("10:03:00"))])
    fault = world.vendor.add_fault("invalid_json", path="/v2/aggs")
    with live.repairing() as repair:
        repair.until(lambda: repair.fact("requests") == 1)
        repair.looks(2)
        assert repair.fact("requests") == 1
        world.vendor.clear_faults(fault)
        repair.looks(2)
        assert repair.fact("requests") == 1
        live.turn(at("11:06:00"))
        repair.until(lambda: world.bars(KEY, "1m").filter(ts=at("10:01:00")).height == 1)


def test_what_lands_after_a_look_has_failed_is_derived_by_a_later_one(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hole = (at("10:00:00"), at("10:03:00"))
    live = live_world(world, tmp_path, at("11:30:05"))
    live.stream(at("00:00:00"), at("11:00:00"), without=[hole])

    async def spool(rt: Any, instrument: Any, ranges: list[Any], *args: Any, **more: Any) -> None:
        raise RangeNotLoaded("spooled", [(KEY, *ranges[0])])

    monkeypatch.setattr(mending, "load_symbol", spool)  # as when NATS goes away between the question and the answer
    with live.repairing() as repair:
        repair.until(lambda: "spooled" in " ".join(repair.service.health().problems))
        repair.until(lambda: world.bars(KEY, "1h").filter(ts=hole[0])["complete"].to_list() == [False])
        live.stream(*hole)  # now it lands
        repair.until(lambda: world.bars(KEY, "1h").filter(ts=hole[0])["complete"].to_list() == [True])


def test_the_seam_is_asked_for_a_settle_at_a_time(world: World, tmp_path: Path) -> None:
    live = live_world(world, tmp_path, at("13:37:20"))
    world.load({KEY: DAYS}, clock=live.clock)
    live.turn(at("13:42:30"))
    live.stream(at("13:41:25"), at("13:59:00"))
    world.vendor.clear_requests()
    with live.repairing() as repair:
        repair.until(lambda: repair.fact("looks") >= 1)
        for minute in range(43, 58):
            live.turn(at(f"13:{minute}:30"))
            repair.looks(1)
        # 13:32 to 13:42: no request for each minute that falls due, but one for five of them and one for the rest
        assert live.asked() == 2
        assert repair.fact("open_gaps") == 0
    minutes = world.bars(KEY, "1m").filter(pl.col("ts") < at("13:55:00"), pl.col("ts") >= at("13:00:00"))
    assert_bars_equal(
        minutes,
        truth(TICKER, DAY).filter((pl.col("ts") < at("13:55:00")) & (pl.col("ts") >= at("13:00:00"))),
        "the seam",
    )


def test_a_vendor_that_is_away_is_left_alone_until_a_trial(world: World, tmp_path: Path) -> None:
    breaker = BreakerSettings(failures=2, open_s=3.0)
    live = live_world(world, tmp_path, at("11:00:05"), breaker=breaker)
    live.stream(at("08:50:00"), at("11:00:00"), without=[(at("10:00:00"), at("10:03:00"))])
    fault = world.vendor.add_fault("server_error", path="/v2/aggs")
    with live.repairing() as repair:
        repair.until(lambda: repair.service.health().facts.get("breaker_vendor") == "open")
        repair.until(lambda: repair.service.health().state == "waiting")
        assert any("vendor is away" in problem for problem in repair.service.health().problems)
        world.vendor.clear_requests()
        looks = repair.fact("looks")
        repair.until(lambda: repair.fact("looks") >= looks + 3 or repair.fact("breaker_vendor") != "open")
        assert repair.fact("looks") > looks, "it goes on looking"
        if repair.fact("breaker_vendor") == "open":
            assert live.asked() == 0, "and asks nothing"
        world.vendor.clear_faults(fault)
        repair.until(lambda: repair.fact("breaker_vendor") == "closed" and repair.fact("open_gaps") == 0)
        repair.until(lambda: repair.service.health().state == "running")
        assert repair.fact("breaker_insert") == repair.fact("breaker_publish") == "closed"
    assert world.bars(KEY, "1m").filter(ts=at("10:01:00"))["complete"].to_list() == [True]


def test_the_next_question_is_due_by_when_the_last_was_asked(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long its answer takes to land: here the lateness passes meanwhile, and then no time at all."""
    live = live_world(world, tmp_path, at("09:00:00"))
    world.load({KEY: DAYS}, clock=live.clock)
    live.turn(at("11:00:05"))
    live.stream(at("08:50:00"), at("11:11:00"), without=[(at("10:00:30"), at("10:03:00"))])
    live.lose(LossInterval(KEY, at("10:00:30"), at("10:03:00"), "disconnect"))
    world.vendor.remove(TICKER, at("10:00:00"), at("10:03:00"))
    ask = mending.load_symbol

    async def slowly(*args: Any, **options: Any) -> None:
        await ask(*args, **options)
        live.turn(at("11:11:00"))

    monkeypatch.setattr(mending, "load_symbol", slowly)
    with live.repairing() as repair:
        confirmed = [(at("10:00:00"), at("10:03:00"), "vendor_missing", "confirmed", 2)]
        repair.until(lambda: live.gaps() == confirmed)

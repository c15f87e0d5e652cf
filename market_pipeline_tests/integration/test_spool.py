"""A load, and live time beside it, whose NATS goes away: what was on its way waits on disk, and nothing is missing."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from market_pipeline.bus import rate
from market_pipeline.bus.spool import spool_root, spool_status
from market_pipeline.cli import build_app
from market_pipeline.errors import RangeNotLoaded
from market_pipeline.history import LoadReport
from market_pipeline.live.build import build_services
from market_pipeline.live.thread import LiveThread
from market_pipeline.stores.ticks import TickReader
from market_pipeline_tests.integration import road
from market_pipeline_tests.integration.road import Replay, fact, wait_for
from market_pipeline_tests.integration.test_crash import AGGS, KEY, TICKER, landed
from market_pipeline_tests.integration.test_live_road import SERVICES, oanda, road_settings
from market_pipeline_tests.integration.world import World, assert_bars_equal, day_range, truth
from market_pipeline_tests.stores.ticks.conftest import MakeDatabase

DAYS = {KEY: day_range("2023-01-01", "2023-12-31")}


def spooled(world: World) -> int:
    return sum(each.records for each in spool_status(spool_root(world.settings)))


def interrupt(world: World, pool: ThreadPoolExecutor, wait_s: float) -> Future[LoadReport]:
    """Start a load and kill its NATS under way; return once something is in the spool."""
    spool = world.settings.spool.model_copy(update={"wait_s": wait_s})
    world.settings = world.settings.model_copy(update={"spool": spool})
    world.vendor.add_fault("slow", path=AGGS, delay=0.3)
    run = pool.submit(world.load, DAYS, run_id="a", root="a")
    until = time.monotonic() + 60
    while landed(world) < 2 and time.monotonic() < until and not run.done():
        time.sleep(0.02)
    assert not run.done(), "the run must still be under way"
    world.nats.kill()
    while not spooled(world) and time.monotonic() < until:
        time.sleep(0.02)
    assert spooled(world)
    return run


def test_a_run_whose_nats_stays_away_fails_with_its_range_and_the_next_one_drains_its_spool(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "PATIENCE_S", 1.0)
    with ThreadPoolExecutor(1) as pool:
        run = interrupt(world, pool, wait_s=1)
        with pytest.raises(
            RangeNotLoaded, match=r"(?s)GBP/USD: not loaded: 2023-.*batches of this run wait in the spool"
        ) as failed:
            run.result(timeout=120)
    assert failed.value.missing
    waiting = spooled(world)
    assert 0 < waiting <= world.settings.history.max_unresolved_batches
    assert all(each.adoptable for each in spool_status(spool_root(world.settings)))
    world.nats.start()
    world.vendor.clear_faults()
    world.load(DAYS, run_id="b", root="a")
    assert_bars_equal(world.bars(KEY, "1m"), truth(TICKER, DAYS[KEY]), "after the outage")
    assert spool_status(spool_root(world.settings)) == []


def test_a_run_whose_nats_comes_back_in_time_ends_well(world: World) -> None:
    with ThreadPoolExecutor(1) as pool:
        run = interrupt(world, pool, wait_s=60)
        world.nats.start()
        run.result(timeout=120)
    assert spool_status(spool_root(world.settings)) == []
    assert_bars_equal(world.bars(KEY, "1m"), truth(TICKER, DAYS[KEY]), "after the outage")


# Before the quotes that are replayed beside it: the vendor's clock stands there.
BEFORE = day_range("2012-01-01", "2013-12-31")
GBP = """\
  - {symbol: GBP/USD, asset_class: forex, vendor_ticker: "C:GBPUSD", calendar: forex, history_start: 2012-01-01}
"""


def shown(world: World) -> str:
    """What `market-pipeline status` says."""
    answer = CliRunner().invoke(build_app(), ["status", "--home", str(world.settings.home)], env={"COLUMNS": "200"})
    return answer.output


def test_nats_goes_away_under_a_load_and_live_and_both_are_drained_and_nothing_is_missing(
    world: World, tmp_path: Path, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotes = oanda("EUR/USD", "bid", full=False)
    settings = road_settings(world, tmp_path, make_database(), [quotes])
    assert settings.instruments_file is not None
    settings.instruments_file.write_text(settings.instruments_file.read_text() + GBP)
    live_only = settings.live.model_copy(update={"symbols": (quotes.symbol,)})
    world.settings = settings = settings.model_copy(update={"live": live_only})
    monkeypatch.setattr(road, "STEP_QUOTES", 1000)
    replay = Replay(world.vendor, [quotes])
    replay.prepare()
    world.vendor.add_fault("slow", path=AGGS, delay=0.3)
    away, back = replay.total // 3, replay.total * 2 // 3
    both = {"collector default", "history backfill"}  # and "history live", once it derived something
    seen: list[dict[str, int]] = []

    def records() -> dict[str, int]:
        return {each.name: each.records for each in spool_status(spool_root(settings)) if each.records}

    def after_step(count: int) -> None:
        if not seen and count >= away:
            wait_for(lambda: landed(world) >= 2, live, "the load is under way")
            assert not load.done()
            world.nats.kill()
            seen.append(records())
        if len(seen) == 1 and count >= back:
            wait_for(lambda: set(records()) >= both, live, "both are on disk")
            seen.append(records())
            table = [line.split("(pid")[0].strip() for line in shown(world).splitlines() if "in use" in line]
            assert set(table) >= both
            assert not load.done()
            world.nats.start()

    services = build_services(settings, SERVICES, clock=replay.clock, replayed=True)
    with ThreadPoolExecutor(1) as pool, LiveThread(settings, services) as live:
        wait_for(lambda: fact(live, "collector", "forex_connected") == 1, live, "a connection to the vendor")
        load = pool.submit(world.load, {KEY: BEFORE}, run_id="backfill", clock=replay.clock)
        replay.run(live, after_step)
        load.result(timeout=120)
        wait_for(lambda: not records(), live, "the spool is drained")
        wait_for(lambda: fact(live, "ticks", "ticks") == replay.total, live, "every tick stored")
        minutes = quotes.fold("1 minute")
        wait_for(lambda: world.bars("EURUSD", "1m").height == minutes.height, live, "every minute stored")
        wait_for(lambda: bool(world.bars("EURUSD", "1m")["complete"].all()), live, "every minute complete")
    assert spool_status(spool_root(settings)) == []
    assert "spool" not in shown(world)
    assert seen[0] == {}
    assert seen[1]["collector default"] > 10
    assert 0 < seen[1]["history backfill"] <= settings.history.max_unresolved_batches

    assert_bars_equal(world.bars(KEY, "1m"), truth(TICKER, BEFORE), "the load")
    assert_bars_equal(world.bars("EURUSD", "1m"), minutes, "live")
    with TickReader(settings.postgres) as reader:
        kept = reader.ticks("EURUSD", replay.start, replay.end)
        assert reader.losses("EURUSD", replay.start, replay.end).is_empty()
    assert kept.select("ts", "bid", "ask").equals(quotes.quotes)

"""A load whose NATS goes away: what was on its way waits on disk, and spooled is never success."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from market_pipeline.bus import rate
from market_pipeline.bus.spool import spool_root, spool_status
from market_pipeline.errors import RangeNotLoaded
from market_pipeline.history import LoadReport
from market_pipeline_tests.integration.test_crash import AGGS, KEY, TICKER, landed
from market_pipeline_tests.integration.world import World, assert_bars_equal, day_range, truth

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

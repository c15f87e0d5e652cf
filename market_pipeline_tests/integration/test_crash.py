"""Runs that are killed, servers that go away, and two runs at once: the bars equal those of an undisturbed run."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from market_pipeline.errors import BusUnreachable, MarketPipelineError, StoreUnreachable
from market_pipeline_tests.integration.world import World, assert_bars_equal, day_range, truth

KEY, TICKER = "GBPUSD", "C:GBPUSD"
AGGS = "/v2/aggs"
RUN = """
import sys
from datetime import date
from market_pipeline.history import load_minutes
from market_pipeline.settings import load_settings
home, run_id, root, first, end = sys.argv[1:]
days = {"GBPUSD": [(date.fromisoformat(first), date.fromisoformat(end))]}
load_minutes(load_settings(home), days, run_id=run_id, root_run_id=root)
"""


def start_run(world: World, run_id: str, root: str, first: str, end: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(world.settings.home), run_id, root, first, end],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def landed(world: World) -> int:
    try:
        return int(world.query("SELECT count() AS n FROM vendor_requests FINAL WHERE outcome = 'ok'")["n"][0])
    except MarketPipelineError:
        return 0  # the run has not applied the schema yet


def test_a_run_killed_near_its_end_goes_on_from_its_checkpoint(world: World) -> None:
    """A year is 11 requests; the run dies by SIGKILL when at least 8 have landed."""
    days = {KEY: day_range("2023-01-01", "2023-12-31")}
    world.vendor.add_fault("slow", path=AGGS, delay=0.2)
    run = start_run(world, "first", "first", "2023-01-01", "2024-01-01")
    until = time.monotonic() + 60
    while landed(world) < 8 and time.monotonic() < until and run.poll() is None:
        time.sleep(0.02)
    assert run.poll() is None, "the run must still be under way"
    run.kill()
    run.wait()
    world.vendor.clear_faults()
    time.sleep(0.5)  # the vendor still writes down the slow request that the dead run had sent
    done = landed(world)
    assert 8 <= done < 11
    world.vendor.clear_requests()
    report = world.load(days, run_id="second", root="first")
    asked = [r for r in world.vendor.requests() if AGGS in r.path]
    assert len(asked) == 11 - done == report.symbols[KEY].requests
    assert_bars_equal(world.bars(KEY, "1m"), truth(TICKER, days[KEY]), "after the kill")
    assert (
        world.query("SELECT count() AS n, uniqExact(ts) AS u FROM bars_final").row(0)[0]
        == truth(TICKER, days[KEY]).height
    )


def test_two_runs_of_the_same_range_at_once_end_with_the_right_rows(world: World) -> None:
    days = {KEY: day_range("2024-01-01", "2024-03-31")}
    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(world.load, days) for _ in range(2)]
        reports = [r.result(timeout=120) for r in results]
    assert_bars_equal(world.bars(KEY, "1m"), truth(TICKER, days[KEY]), "two runs")
    assert {r.counts.rows for r in reports} == {truth(TICKER, days[KEY]).height}


def test_an_older_answer_never_wins_over_a_newer_one(world: World) -> None:
    """A run that fetched before a restatement, and is stored after it, must lose."""
    days = {KEY: day_range("2024-03-04", "2024-03-04")}
    world.load(days)
    moment = truth(TICKER, days[KEY])["ts"][100]
    world.vendor.restate(TICKER, moment, close=1.5, high=2.0)
    world.load(days)
    newest = world.bars(KEY, "1m").filter(ts=moment)["revision"][0]
    # the same batch road, with the revision of an old fetch
    from market_pipeline.history import answer as load_module

    world.vendor.restore(TICKER, moment)
    original = load_module.page_to_bars

    def old_answer(*args: object, **kwargs: object):  # type: ignore[no-untyped-def]
        import polars as pl

        return original(*args, **kwargs).with_columns(revision=pl.lit(newest - 10, dtype=pl.UInt64))  # type: ignore[arg-type]

    load_module.page_to_bars = old_answer  # type: ignore[assignment]
    try:
        report = world.load(days)
    finally:
        load_module.page_to_bars = original
    assert report.counts.superseded == 1
    assert world.bars(KEY, "1m").filter(ts=moment)["close"][0] == 1.5


def test_nats_restarting_under_a_load_loses_nothing(world: World) -> None:
    days = {KEY: day_range("2023-01-01", "2023-12-31")}
    world.vendor.add_fault("slow", path=AGGS, delay=0.2)

    # The server is restarted from this thread: it ends with the thread that started it.
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(world.load, days, run_id="a", root="a")
        until = time.monotonic() + 60
        while landed(world) < 3 and time.monotonic() < until and not run.done():
            time.sleep(0.02)
        assert not run.done(), "the run must still be under way"
        world.nats.restart()
        run.result(timeout=120)
    assert_bars_equal(world.bars(KEY, "1m"), truth(TICKER, days[KEY]), "after the restart")


def test_nats_away_before_the_run_names_the_address(world: World) -> None:
    world.nats.stop()
    with pytest.raises(BusUnreachable, match=str(world.nats.port)):
        world.load({KEY: day_range("2024-03-04", "2024-03-04")})
    assert not [r for r in world.vendor.requests() if AGGS in r.path], "nothing is fetched that cannot be published"


def test_clickhouse_away_before_the_run_names_the_address(world: World) -> None:
    settings = world.settings.model_copy(
        update={"clickhouse": world.settings.clickhouse.model_copy(update={"port": 9, "connect_timeout": 1.0})}
    )
    broken = World(settings, world.nats, world.clickhouse, world.vendor)
    with pytest.raises(StoreUnreachable, match=r"127\.0\.0\.1:9"):
        broken.load({KEY: day_range("2024-03-04", "2024-03-04")})

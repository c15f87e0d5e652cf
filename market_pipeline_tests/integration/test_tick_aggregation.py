"""Minutes from the tick store: the simulator's truth, complete only where that is proven."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from market_pipeline.bus.losses import LossInterval
from market_pipeline.history import AggregateReport, aggregate_ticks
from market_pipeline.market.ticks import TICK_SCHEMA
from market_pipeline.market.timeframes import DERIVED, timeframe
from market_pipeline.settings import LiveSettings, PostgresSettings
from market_pipeline.simulator.truth import ticks
from market_pipeline.stores.ticks import TickBatch, TickLoss, TickStore
from market_pipeline.tick_payload import decode_ticks, encode_ticks
from market_pipeline_tests.integration.repairing import KEY, TICKER, live_world
from market_pipeline_tests.integration.test_live_repair import DAY, at
from market_pipeline_tests.integration.world import World, assert_bars_equal, fold_independently, truth
from market_pipeline_tests.stores.ticks.conftest import MakeDatabase


def heard(start: datetime, end: datetime) -> pl.DataFrame:
    """Return the simulator's quotes as a collector has them."""
    frame = ticks(TICKER, start, end).with_columns(
        symbol=pl.lit(KEY),
        kind=pl.lit("quote"),
        exchange=pl.lit(None, pl.String),
        conditions=pl.lit(None, pl.String),
        received_at=pl.col("ts") + timedelta(milliseconds=20),
    )
    return frame.select(pl.col(name).cast(dtype) for name, dtype in TICK_SCHEMA.items())


def fill(database: PostgresSettings, sessions: dict[str, pl.DataFrame], losses: Sequence[TickLoss]) -> None:
    async def run() -> None:
        async with TickStore(database) as store:
            for session, frame in sessions.items():
                batches = []
                for part in frame.iter_slices(200):
                    batch_id = secrets.randbelow(2**63 - 1) + 1
                    decoded = decode_ticks(encode_ticks(part, batch_id))
                    batches.append(TickBatch(batch_id, KEY, 1, decoded, "collector", session, "test"))
                await store.store(batches)
            await store.record_losses(losses)

    asyncio.run(run())


def test_stored_ticks_become_the_vendors_minutes_and_are_complete_only_where_that_is_proven(
    world: World, tmp_path: Path, make_database: MakeDatabase
) -> None:
    database = make_database()
    live = live_world(world, tmp_path, at("13:00:00"), postgres=database)
    # One session from the middle of a minute to the middle of another, then one that ends with the last minute.
    spans = {"a": (at("10:00:20"), at("10:29:40")), "b": (at("10:32:10"), at("12:10:00"))}
    ahead = heard(at("11:30:00"), at("11:30:05")).with_columns(pl.col("received_at") - timedelta(minutes=5), bid=9.0)
    fill(
        database,
        {**{name: heard(*span) for name, span in spans.items()}, "wrong clock": ahead},
        [
            TickLoss(KEY, at("10:29:40"), at("10:32:10"), "disconnect", "a"),
            TickLoss(KEY, at("10:40:00"), at("10:40:01"), "expired"),
        ],
    )
    live.lose(LossInterval(KEY, at("10:50:10"), at("10:50:12"), "overflow"))

    def aggregate() -> AggregateReport:
        return aggregate_ticks(world.settings, {KEY: DAY}, run_id=secrets.token_hex(4), clock=live.clock)

    report = aggregate()
    bars = world.bars(KEY, "1m")
    assert set(bars["source"]) == {"historical_aggregated"}
    unproven = [at(f"{time}:00") for time in ("10:00", "10:29", "10:32", "10:40", "10:50", "12:09")]
    assert bars.filter(~pl.col("complete"))["ts"].to_list() == unproven
    true = truth(TICKER, DAY).filter(
        (pl.col("ts") >= at("10:00:00")) & (pl.col("ts") < at("12:10:00"))
        & ((pl.col("ts") < at("10:30:00")) | (pl.col("ts") >= at("10:32:00")))
    )  # fmt: skip
    cut = [at("10:00:00"), at("10:29:00"), at("10:32:00")]  # these lack ticks, the other unproven ones do not
    assert_bars_equal(bars.filter(~pl.col("ts").is_in(cut)), true.filter(~pl.col("ts").is_in(cut)), "minutes")
    assert bars["ts"].to_list() == true["ts"].to_list()
    (part,) = report.symbols.values()
    assert (part.minutes, part.complete, part.counts.new) == (bars.height, bars.height - len(unproven), bars.height)
    for code in DERIVED:
        closed = pl.col("ts") + timeframe(code).length <= live.now
        folded = fold_independently(bars.drop("timeframe"), code).filter(closed)
        assert_bars_equal(world.bars(KEY, code), folded, code)
    assert world.bars(KEY, "5m").filter(ts=at("11:00:00"))["complete"].to_list() == [True]

    rows = world.count()
    again = aggregate()
    assert again.symbols[KEY].counts.unchanged == bars.height
    assert world.count() == rows, "nothing new is written"


def test_losses_of_the_collector_and_of_the_tick_store_both_become_gaps(
    world: World, tmp_path: Path, make_database: MakeDatabase
) -> None:
    database = make_database()
    # looked back at are five minutes only; the first look begins where history ends all the same
    settings = LiveSettings(repair_every_s=0.1, look_back=timedelta(minutes=5))
    live = live_world(world, tmp_path, at("11:00:05"), postgres=database, live=settings)
    holes = [(at("10:50:10"), at("10:51:20")), (at("10:52:30"), at("10:53:00"))]
    world.load({KEY: [(DAY[0][0] - timedelta(days=2), DAY[0][1])]}, clock=lambda: at("10:40:00"))
    live.stream(at("10:30:00"), at("11:00:00"), without=holes)
    live.lose(LossInterval(KEY, *holes[0], "disconnect"))
    fill(database, {}, [TickLoss(KEY, *holes[1], "expired")])
    lost = [(at("10:50:00"), at("10:52:00"), "lost"), (at("10:52:00"), at("10:53:00"), "lost")]
    with live.repairing() as repair:
        repair.until(lambda: repair.fact("looks") >= 1)
        # found at once, though it is too early to ask
        assert live.gaps() == [(lost[0][0], lost[1][1], "lost", "open", 0)]
        health = repair.service.health()
        assert (health.facts["tick_store_losses"], health.problems) == ("known", ())
        live.stream(at("11:00:00"), at("11:09:00"))
        live.turn(at("11:09:00"))
        repair.until(lambda: repair.fact("losses_settled") == 1)
        assert live.losses() == []
        # what the tick store keeps stays: the bars are complete now, and it makes no gap of them
        repair.looks(1)
        assert live.gaps() == []
    # two minutes around them are asked for in one request, and only these two are written
    world.command(f"DELETE FROM bars WHERE timeframe = '1m' AND ts IN ('{DAY[0][0]} 10:49:00', '{DAY[0][0]} 10:53:00')")
    world.vendor.clear_requests()
    with live.repairing() as repair:
        repair.until(lambda: repair.fact("minutes_repaired") == 2)
        assert live.asked() == 1
    minutes = world.bars(KEY, "1m").filter(pl.col("ts") >= at("00:00:00"))
    assert_bars_equal(minutes, truth(TICKER, DAY).filter(pl.col("ts") < at("11:09:00")), "repaired")
    # what was repaired before is not withdrawn because it was not wanted now
    filled = world.query("SELECT ts FROM bars FINAL WHERE source = 'live_gap_filled' ORDER BY ts")
    assert filled["ts"].to_list() == [at(f"10:{minute}:00") for minute in range(49, 54)]

"""Live minutes beside the vendor's: compared exactly, and ranked by a setting without a row being written."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

import dagster as dg
import polars as pl
import pytest

from market_pipeline.history import reconcile_live
from market_pipeline.history.reports import ReconcileReport
from market_pipeline.instruments_file import load_instruments
from market_pipeline.market.bars import BAR_SCHEMA, LIVE_AGGREGATED, VENDOR_HISTORICAL
from market_pipeline.market.reconciliation import Counts
from market_pipeline.market.timeframes import DERIVED
from market_pipeline.orchestration.build import build_definitions
from market_pipeline.orchestration.jobs import range_tags
from market_pipeline.settings import PRECEDENCE, Settings
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import connect
from market_pipeline_tests.integration.world import (
    World,
    assert_bars_equal,
    day_range,
    fold_independently,
    truth,
    utc,
    write_home,
)

KEY, TICKER = "USDCHF", "C:USDCHF"
DAYS = {KEY: day_range("2024-03-13", "2024-03-13")}
FIRST, END = utc("2024-03-13T09:00:00"), utc("2024-03-13T11:00:00")
WRONG, LOST, NEAR, OPEN = (FIRST + timedelta(minutes=n) for n in (17, 40, 61, 80))
VENDOR_FIRST = (VENDOR_HISTORICAL, *(name for name in PRECEDENCE if name != VENDOR_HISTORICAL))


def live_minutes() -> pl.DataFrame:
    """Return the simulator's own minutes of two hours as the aggregator would publish them."""
    minutes = truth(TICKER, DAYS[KEY]).filter(pl.col("ts").is_between(FIRST, END, closed="left"))
    assert minutes.height == 120
    return minutes.with_columns(
        symbol=pl.lit(KEY), timeframe=pl.lit("1m"), source=pl.lit(LIVE_AGGREGATED), origin=pl.lit(""),
        vwap=pl.lit(None, pl.Float64), complete=pl.lit(True), revision=pl.lit(1), is_deleted=pl.lit(0),
    ).select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())  # fmt: skip


def at(ts: object, value: pl.Expr, name: str) -> pl.Expr:
    return pl.when(pl.col("ts") == ts).then(value).otherwise(pl.col(name)).alias(name)


def flawed() -> pl.DataFrame:
    """Return live minutes with a high 1 % off, one missing, one a little off, and one incomplete with a wrong close."""
    return (
        live_minutes()
        .filter(pl.col("ts") != LOST)
        .with_columns(
            at(WRONG, pl.col("high") * 1.01, "high"),
            at(NEAR, pl.col("close") * (1 + 5e-5), "close"),
            at(OPEN, pl.lit(False), "complete"),
        )
        .with_columns(at(OPEN, pl.col("close") * 2, "close"))
    )


def store(world: World, bars: pl.DataFrame) -> None:
    """Put live bars into the store as the bridge would."""
    world.load({KEY: day_range("2024-03-12", "2024-03-12")})  # brings the schema, and is no part of what is compared
    client = connect(world.settings.clickhouse)
    try:
        BarStore(client).insert_frame(bars.with_columns(batch_id=pl.lit(1, pl.UInt64)))
    finally:
        client.close()


def with_(settings: Settings, **history_or_live: dict[str, Any]) -> Settings:
    changed = {name: getattr(settings, name).model_copy(update=values) for name, values in history_or_live.items()}
    return settings.model_copy(update=changed)


def run(settings: Settings) -> ReconcileReport:
    run_id = secrets.token_hex(4)
    return reconcile_live(settings, DAYS, run_id=run_id, root_run_id=run_id)


def test_live_minutes_that_equal_the_vendor_s_agree(world: World) -> None:
    store(world, live_minutes())
    world.vendor.clear_requests()
    report = run(world.settings)
    assert report.counts == {KEY: Counts(equal=120)}
    assert (report.differing.height, report.values, report.winner) == (0, 0, LIVE_AGGREGATED)
    assert report.load.counts.new == 120, "only what live time spans is asked for"
    assert len([r for r in world.vendor.requests() if "/v2/aggs" in r.path]) == 1
    rows = world.count()
    assert run(world.settings).counts == {KEY: Counts(equal=120)}
    assert world.count() == rows, "to look again writes nothing"


def test_without_live_minutes_the_vendor_is_not_asked(world: World) -> None:
    world.load({KEY: day_range("2024-03-12", "2024-03-12")})
    world.vendor.clear_requests()
    report = run(world.settings)
    assert report.counts == {}
    assert not [r for r in world.vendor.requests() if "/v2/aggs" in r.path]


@pytest.fixture
def found_home(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Let Dagster's resources find the world."""
    world.settings = with_(world.settings, live={"price_tolerance": 1e-4})
    write_home(world.settings)
    monkeypatch.setenv("MARKET_PIPELINE_HOME", str(world.settings.home))
    monkeypatch.setenv("MARKET_PIPELINE_LIVE__PRICE_TOLERANCE", "1e-4")
    return world


def test_a_wrong_a_lost_and_a_tolerated_minute_are_told_apart_by_the_job_and_the_check(found_home: World) -> None:
    world = found_home
    store(world, flawed())
    defs = build_definitions(load_instruments(world.settings))
    tags = range_tags(f"2024-03-13|{KEY}", f"2024-03-13|{KEY}")
    minutes = truth(TICKER, DAYS[KEY])
    high = minutes.filter(pl.col("ts") == WRONG)["high"][0]
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("reconcile_live").execute_in_process(instance=instance, tags=tags)
        from_job = evaluation(result.all_events, "live_agreement")
        checked = defs.resolve_job_def("check_bars").execute_in_process(instance=instance, tags=tags)
        from_check = evaluation(checked.all_events, "live_agreement")
    for found in (from_job, from_check):
        assert (found.passed, found.severity, found.blocking) == (False, dg.AssetCheckSeverity.WARN, False)
        table = found.metadata["values that differ"]
        assert isinstance(table, dg.TableMetadataValue)
        [record] = table.records
        numbers = {name: value.value for name, value in found.metadata.items() if value is not table}
        assert dict(record.data) == {
            "symbol": KEY,
            "ts": "2024-03-13 09:17:00",
            "column": "high",
            "live": pytest.approx(high * 1.01),
            "vendor": high,
            "difference": pytest.approx(0.01),
        }
        assert numbers == {
            "minutes compared": 118,
            "minutes that differ": 1,
            "minutes only live": 0,
            "minutes only vendor": 1,
            "minutes incomplete live": 1,
            "largest difference": pytest.approx(0.01),
            "wins": LIVE_AGGREGATED,
            "values that differ in all": 1,
        }
        assert "1 of 118 live minutes differ" in str(found.description)
        assert f"{KEY} at 2024-03-13 09:17 UTC" in str(found.description)
    # where live lacks a complete minute the vendor's has won, and what is derived from it was derived again
    winners = world.bars(KEY, "1m").filter(pl.col("ts").is_in([LOST, OPEN]))
    assert set(winners["source"]) == {VENDOR_HISTORICAL}
    fifth = world.bars(KEY, "5m").filter(pl.col("ts") == OPEN)
    assert fifth["close"][0] == minutes.filter(pl.col("ts") == OPEN + timedelta(minutes=4))["close"][0]


def test_another_precedence_flips_the_winner_at_once_and_derived_bars_when_they_are_derived(world: World) -> None:
    store(world, flawed())
    world.load(DAYS)
    world.derive(DAYS)
    live = flawed()
    vendor = truth(TICKER, DAYS[KEY])
    beside = vendor.filter(~pl.col("ts").is_in(live.filter("complete")["ts"].implode()))
    live_wins = pl.concat([live.filter("complete").select(beside.columns).cast(beside.schema), beside]).sort("ts")  # type: ignore[arg-type]
    day = [pl.col("ts").is_between(utc("2024-03-13T00:00:00"), utc("2024-03-13T23:59:00"))]
    stored = "SELECT source, ts, revision, batch_id, ingested_at FROM bars WHERE timeframe = '1m' ORDER BY source, ts"
    rows = world.query(stored)
    base = world.settings
    for precedence, expected in ((VENDOR_FIRST, vendor), (PRECEDENCE, live_wins), (VENDOR_FIRST, vendor)):
        world.settings = with_(base, history={"precedence": precedence})
        report = run(world.settings)
        assert report.winner == next(name for name in precedence if name in (LIVE_AGGREGATED, VENDOR_HISTORICAL))
        assert report.counts[KEY].differ == 2, "who wins changes nothing of what differs"
        assert report.load.counts.written == 0
        assert world.query(stored).equals(rows), "no minute was written"
        assert_bars_equal(world.bars(KEY, "1m").filter(day), expected, f"1m, {precedence[0]}")

        written = sum(one.written for one in world.derive(DAYS).timeframes.values())
        assert written > 0
        assert sum(one.written for one in world.derive(DAYS).timeframes.values()) == 0, "to derive again writes nothing"
        for timeframe in DERIVED:
            if timeframe != "1w":  # its other days were not loaded
                ours = world.bars(KEY, timeframe).filter(day)
                assert_bars_equal(ours, fold_independently(expected, timeframe), f"{timeframe}, {precedence[0]}")
        early = world.bars(KEY, "5m").filter(pl.col("ts") == FIRST)
        assert early["origin"][0] == precedence[0]

    # the weakest source is the weakest of the setting: here live, of the one minute that the vendor lacks
    world.command(
        f"DELETE FROM bars WHERE symbol = '{KEY}' AND timeframe = '1m' AND source = '{VENDOR_HISTORICAL}' "
        f"AND ts = '{FIRST:%Y-%m-%d %H:%M:%S}'"
    )
    world.derive(DAYS)
    assert world.bars(KEY, "5m").filter(pl.col("ts") == FIRST)["origin"][0] == LIVE_AGGREGATED


def evaluation(events: list[dg.DagsterEvent], name: str) -> dg.AssetCheckEvaluation:
    found = [
        event.asset_check_evaluation_data for event in events if event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    return next(one for one in found if one.check_name == name)

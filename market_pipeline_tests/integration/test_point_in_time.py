"""Point in time over the whole road: the vendor corrects, withdraws and returns bars; every moment keeps its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from market_pipeline import read
from market_pipeline.errors import BadRange
from market_pipeline.orchestration.assets.restatements import KINDS, build_restatements
from market_pipeline.orchestration.resources import SettingsResource, StoresResource
from market_pipeline_tests.integration.world import World, day_range, utc

DAYS = {"EURUSD": day_range("2024-03-04", "2024-03-05")}
TIMEFRAMES = ("1m", "5m", "1d", "1w")
MINUTE = utc("2024-03-04T10:00:00")


@pytest.fixture
def loaded(world: World) -> Iterator[World]:
    world.load(DAYS)
    world.derive(DAYS)
    yield world
    read._forget(world.settings.clickhouse)


def now() -> datetime:
    """Return a moment between what was stored and what will be: one clock serves all of them here."""
    time.sleep(0.002)
    moment = datetime.now(UTC)
    time.sleep(0.002)
    return moment


def bars(world: World, as_of: datetime | None = None) -> dict[str, pl.DataFrame]:
    return {
        code: read.bars("EUR/USD", code, "2024-03-03", "2024-03-10", as_of=as_of, settings=world.settings)
        for code in TIMEFRAMES
    }


def assert_same(found: dict[str, pl.DataFrame], expected: dict[str, pl.DataFrame]) -> None:
    for code in TIMEFRAMES:
        assert_frame_equal(found[code], expected[code])


def again(world: World) -> tuple[datetime, dict[str, pl.DataFrame]]:
    """Load and derive anew; return a moment after it, and what a reader then has."""
    world.load(DAYS)
    world.derive(DAYS)
    return now(), bars(world)


def test_every_moment_around_a_restatement_keeps_its_answer(world: World, loaded: World) -> None:
    started = world.query("SELECT min(ingested_at) AS t FROM bars")["t"][0]
    known = [(now(), bars(world))]
    world.vendor.restate("C:EURUSD", MINUTE, high=2.5)
    known.append(again(world))
    world.vendor.withdraw("C:EURUSD", MINUTE, MINUTE + timedelta(minutes=5))
    known.append(again(world))
    world.vendor.restore("C:EURUSD", MINUTE, MINUTE + timedelta(minutes=5))
    known.append(again(world))

    highs = [frames["1d"]["high"].max() for _, frames in known]
    assert highs[1] == 2.5 != highs[0]
    assert known[2][1]["1m"].height == known[0][1]["1m"].height - 5
    assert known[2][1]["5m"].filter(pl.col("ts") == MINUTE).is_empty()
    for _ in ("unmerged", "merged"):
        for moment, frames in known:
            assert_same(bars(world, as_of=moment), frames)
        for table in ("bars", "bar_revisions"):
            world.command(f"OPTIMIZE TABLE {table} FINAL")
    with pytest.raises(BadRange, match=r"nothing of EUR/USD 1m was stored yet as of .* known at"):
        read.bars(
            "EUR/USD", "1m", "2024-03-04", "2024-03-05", as_of=started - timedelta(minutes=1), settings=world.settings
        )

    kinds = world.query(
        "SELECT kind, toUInt32(count()) AS bars FROM bar_changes WHERE timeframe = '1m' GROUP BY kind ORDER BY kind"
    )
    assert kinds.rows() == [("restated", 1), ("returned", 5), ("withdrawn", 5)]


def test_the_report_says_what_was_corrected_and_by_which_batch(world: World, loaded: World) -> None:
    world.vendor.restate("C:EURUSD", MINUTE, high=2.5)
    again(world)
    settings = SettingsResource(home=str(world.settings.home))
    stores = StoresResource(settings=settings, database=world.settings.clickhouse.database)
    result = dg.materialize(
        [build_restatements()],
        resources={"stores": stores},
        run_config={"ops": {"restatements": {"config": {"days": 2}}}},
    )
    metadata = result.asset_materializations_for_node("restatements")[0].metadata
    rows = [record.data for record in metadata["corrections"].records]  # type: ignore[attr-defined]
    assert sorted(row["timeframe"] for row in rows) == sorted(("1m", "5m", "15m", "30m", "1h", "4h", "1d", "1w"))
    minute = next(row for row in rows if row["timeframe"] == "1m")
    assert [minute[kind] for kind in KINDS] == [1, 0, 0, 0, 0]
    assert minute["largest_ts"] == "2024-03-04 10:00:00"
    assert minute["largest high (%)"] > 100
    batch = world.query("SELECT toString(batch_id) AS batch FROM bars FINAL WHERE timeframe = '1m' AND high = 2.5")
    assert minute["largest_batch"] == batch["batch"][0]
    assert sum(record.data["restated"] for record in metadata["by day"].records) == len(rows)  # type: ignore[attr-defined]


def test_a_load_that_corrects_nothing_keeps_no_version(world: World, loaded: World) -> None:
    world.load(DAYS)
    world.derive(DAYS)
    assert world.count("bar_revisions") == 0

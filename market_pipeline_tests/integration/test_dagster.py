"""The whole platform under Dagster: a backfill as the UI launches it, checks, and jobs launched from a terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from market_pipeline.local.control_room import CheckVerdict, ControlRoom
from market_pipeline.local.stack import Stack
from market_pipeline.market.timeframes import DERIVED
from market_pipeline.payload import BATCH_SCHEMA
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import connect
from market_pipeline_tests.browser.chromium import Chromium, find_chromium
from market_pipeline_tests.integration.world import assert_bars_equal, fold_independently, truth

# The first test pays for starting a whole stack and for a backfill.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
SYMBOLS = {"EURUSD": "C:EURUSD", "BTCUSD": "X:BTCUSD", "USDCHF": "C:USDCHF"}
DAILY = ("bars_1m", *(f"bars_{code}" for code in DERIVED if code != "1w"))
FIRST, DAYS = date(2024, 2, 25), 21  # three weeks, Sunday to Saturday, across the change to summer time
WEEKS = [FIRST + timedelta(days=7 * n) for n in range(DAYS // 7)]
_PARTITIONS = """
query Partitions($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode { partitionStats { numMaterialized numPartitions numFailed } }
  }
}
"""


@dataclass
class Platform:
    """A running stack with a project folder of its own."""

    stack: Stack
    folder: Path
    room: ControlRoom

    def query(self, sql: str) -> pl.DataFrame:
        client = connect(self.stack.settings.clickhouse)
        try:
            return client.frame(sql)
        finally:
            client.close()

    def bars(self, key: str, timeframe: str) -> pl.DataFrame:
        return self.query(f"SELECT * FROM bars_final WHERE symbol = '{key}' AND timeframe = '{timeframe}' ORDER BY ts")

    def dagster(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run plain `dagster` in the project's folder: only its .env tells it where the stack is."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER", "MARKET_PIPELINE"))}
        command = [str(Path(sys.executable).with_name("dagster")), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=180, check=False
        )

    def check(self, name: str, asset: str = "bars_1m") -> CheckVerdict:
        return next(each for each in self.room.checks([asset]) if each.name == name)

    def newest_run(self, job: str) -> str:
        found = self.room.query(
            "query($job: String!) { runsOrError(filter: {pipelineName: $job}, limit: 1) "
            "{ ... on Runs { results { runId } } } }",
            job=job,
        )
        return str(found["runsOrError"]["results"][0]["runId"])

    def row_counts(self, run: str, asset: str) -> dict[str, int]:
        """Return by partition the rows that the run's materializations of an asset tell of."""
        found = self.room.query(
            "query($id: ID!) { runOrError(runId: $id) { ... on Run { assetMaterializations "
            "{ partition assetKey { path } metadataEntries { label ... on IntMetadataEntry { intValue } } } } } }",
            id=run,
        )
        return {
            event["partition"]: entry["intValue"]
            for event in found["runOrError"]["assetMaterializations"]
            if event["assetKey"]["path"] == [asset]
            for entry in event["metadataEntries"]
            if entry["label"] == "dagster/partition_row_count"
        }


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    for name in ("workspace.yaml", "dagster.yaml"):
        shutil.copy(ROOT / name, folder)
    stack = Stack(folder / "home", project_dir=folder, die_with_parent=True)
    with stack, ControlRoom(stack.settings.dagster.webserver_url) as room:
        yield Platform(stack, folder, room)


@pytest.fixture(scope="module")
def backfilled(platform: Platform) -> Platform:
    days = [FIRST + timedelta(days=n) for n in range(DAYS)]
    keys = [f"{day}|{symbol}" for day in days for symbol in SYMBOLS]
    backfill = platform.room.backfill(DAILY, keys)
    assert platform.room.wait_backfill(backfill, timeout=240) == "COMPLETED_SUCCESS"
    return platform


def test_a_backfill_of_a_range_materializes_every_partition_and_the_truth(backfilled: Platform) -> None:
    for asset in DAILY:
        stats = backfilled.room.query(_PARTITIONS, key={"path": [asset]})["assetNodeOrError"]["partitionStats"]
        assert (stats["numMaterialized"], stats["numFailed"]) == (DAYS * len(SYMBOLS), 0), asset
    weekly = backfilled.room.query(_PARTITIONS, key={"path": ["bars_1w"]})["assetNodeOrError"]["partitionStats"]
    assert weekly["numMaterialized"] == len(WEEKS) * len(SYMBOLS)
    for key, ticker in SYMBOLS.items():
        minutes = truth(ticker, [(FIRST, FIRST + timedelta(days=DAYS))])
        assert_bars_equal(backfilled.bars(key, "1m"), minutes, f"{key} 1m")
        for timeframe in DERIVED:
            assert_bars_equal(
                backfilled.bars(key, timeframe), fold_independently(minutes, timeframe), f"{key} {timeframe}"
            )


def test_a_range_is_one_run_a_symbol_and_never_one_a_day(backfilled: Platform) -> None:
    found = backfilled.room.query("{ runsOrError { ... on Runs { results { tags { key value } } } } }")
    ranged = [
        run
        for run in found["runsOrError"]["results"]
        if any(tag["key"] == "dagster/asset_partition_range_start" for tag in run["tags"])
    ]
    assert len(ranged) == len(SYMBOLS)


def test_a_hole_turns_the_check_red_and_the_job_repairs_exactly_it(backfilled: Platform) -> None:
    start = datetime(2024, 3, 13, 9, 17, tzinfo=UTC)
    client = connect(backfilled.stack.settings.clickhouse)
    client.command(
        "DELETE FROM bars WHERE symbol = 'USDCHF' AND timeframe = '1m' "
        "AND ts >= '2024-03-13 09:17:00' AND ts < '2024-03-13 10:52:00'"
    )
    client.close()
    assert not backfilled.bars("USDCHF", "1m").filter(ts=start).height

    launched = backfilled.dagster("job", "launch", "-w", "workspace.yaml", "-j", "check_bars")
    assert launched.returncode == 0, launched.stderr
    backfilled.room.wait([backfilled.newest_run("check_bars")], timeout=120)
    verdict = backfilled.check("gaps")
    assert (verdict.status, verdict.severity) == ("FAILED", "ERROR"), verdict
    assert "95" in verdict.description

    launched = backfilled.dagster("job", "launch", "-w", "workspace.yaml", "-j", "repair_gaps")
    assert launched.returncode == 0, launched.stderr
    run = backfilled.newest_run("repair_gaps")
    assert backfilled.room.wait([run], timeout=120) == {run: "SUCCESS"}
    minutes = truth("C:USDCHF", [(FIRST, FIRST + timedelta(days=DAYS))])
    assert_bars_equal(backfilled.bars("USDCHF", "1m"), minutes, "repaired")
    written = backfilled.query(
        f"SELECT sum(new_rows) AS n FROM ingest_batches WHERE run_id = '{run}' AND timeframe = '1m'"
    )
    assert written["n"][0] == 95
    # The repair asked for 95 minutes; its event says what the day holds.
    day = minutes.filter(pl.col("ts").dt.date() == date(2024, 3, 13)).height
    assert backfilled.row_counts(run, "bars_1m") == {"2024-03-13|USDCHF": day}
    verdict = backfilled.check("gaps")
    assert verdict.status == "SUCCEEDED" or verdict.severity == "WARN", verdict


def test_a_range_launched_from_a_terminal_says_what_it_did(backfilled: Platform) -> None:
    tags = (
        '{"dagster/asset_partition_range_start": "2024-03-11|EURUSD", '
        '"dagster/asset_partition_range_end": "2024-03-12|EURUSD"}'
    )
    launched = backfilled.dagster("job", "launch", "-w", "workspace.yaml", "-j", "load_history", "--tags", tags)
    assert launched.returncode == 0, launched.stderr
    run = backfilled.newest_run("load_history")
    assert backfilled.room.wait([run], timeout=120) == {run: "SUCCESS"}
    minutes = backfilled.row_counts(run, "bars_1m")
    assert sorted(minutes) == ["2024-03-11|EURUSD", "2024-03-12|EURUSD"]
    assert sum(minutes.values()) == truth("C:EURUSD", [(date(2024, 3, 11), date(2024, 3, 13))]).height


def test_live_minutes_are_reconciled_from_a_terminal(platform: Platform) -> None:
    day = date(2024, 4, 3)
    wrong = datetime(2024, 4, 3, 10, 5, tzinfo=UTC)
    minutes = truth("C:USDCHF", [(day, day + timedelta(days=1))]).filter(
        pl.col("ts").is_between(wrong - timedelta(minutes=5), wrong + timedelta(minutes=5))
    )
    live = minutes.with_columns(
        low=pl.when(pl.col("ts") == wrong).then(pl.col("low") * 0.99).otherwise("low"),
        symbol=pl.lit("USDCHF"), timeframe=pl.lit("1m"), source=pl.lit("live_aggregated"), origin=pl.lit(""),
        complete=pl.lit(True), revision=pl.lit(1), is_deleted=pl.lit(0), batch_id=pl.lit(1),
    )  # fmt: skip
    client = connect(platform.stack.settings.clickhouse)
    BarStore(client).insert_frame(live.select(pl.col(name).cast(dtype) for name, dtype in BATCH_SCHEMA.items()))
    client.close()
    tags = (
        '{"dagster/asset_partition_range_start": "2024-04-03|USDCHF", '
        '"dagster/asset_partition_range_end": "2024-04-03|USDCHF"}'
    )
    launched = platform.dagster("job", "launch", "-w", "workspace.yaml", "-j", "reconcile_live", "--tags", tags)
    assert launched.returncode == 0, launched.stderr
    run = platform.newest_run("reconcile_live")
    assert platform.room.wait([run], timeout=120) == {run: "SUCCESS"}
    verdict = platform.check("live_agreement")
    assert (verdict.status, verdict.severity) == ("FAILED", "WARN"), verdict
    assert "1 of 11 live minutes differ" in verdict.description
    assert "USDCHF at 2024-04-03 10:05 UTC: low" in verdict.description


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed: this test looks at the UI in it")
def test_the_ui_shows_graph_partitions_and_checks(backfilled: Platform, tmp_path: Path) -> None:
    url = backfilled.room.url
    with Chromium() as browser:
        browser.open(f"{url}/assets/bars_1m?view=lineage&lineageScope=downstream", "bars_1m", "bars_5m")
        partitions = browser.open(f"{url}/assets/bars_1m?view=partitions", "EURUSD", f"Materialized ({DAYS * 3})")
        assert "Failed (0)" in partitions
        checks = browser.open(f"{url}/assets/bars_1m?view=checks", "gaps", "freshness", "ohlc_sanity")
        assert "partial_closed" in checks
        browser.picture(tmp_path / "checks.png")
    assert (tmp_path / "checks.png").stat().st_size > 20_000

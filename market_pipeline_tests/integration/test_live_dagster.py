"""A day goes live under Dagster: history up to now, live from now on, everything killed once, and no seam."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import psycopg
import pytest

from market_pipeline.cli.run import read_services
from market_pipeline.local.control_room import ControlRoom
from market_pipeline.local.passwords import POSTGRES_DAGSTER
from market_pipeline.local.stack import Stack
from market_pipeline.market.timeframes import DERIVED, TIMEFRAMES
from market_pipeline.orchestration.live.rules import STALE_S
from market_pipeline.simulator.truth import minutes as truth_minutes
from market_pipeline.stores.clickhouse import connect
from market_pipeline_tests.browser.chromium import Chromium, find_chromium
from market_pipeline_tests.integration.world import assert_bars_equal, fold_independently
from market_pipeline_tests.waiting import until

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
AWAY_S = 60.0
SYMBOLS = {"EURUSD": "C:EURUSD", "BTCUSD": "X:BTCUSD", "ETHUSD": "X:ETHUSD"}
INSTRUMENTS = """
instruments:
  - {symbol: EUR/USD, asset_class: forex, vendor_ticker: "C:EURUSD", calendar: forex, history_start: 2024-01-01,
     price_basis: bid}
  - {symbol: BTC/USD, asset_class: crypto, vendor_ticker: "X:BTCUSD", calendar: crypto, history_start: 2024-01-01}
  - {symbol: ETH/USD, asset_class: crypto, vendor_ticker: "X:ETHUSD", calendar: crypto, history_start: 2024-01-01}
"""
# Short waits: what settles after 5 minutes in a market settles here after seconds, for the simulator keeps its word.
QUICK = {
    "MARKET_PIPELINE_HISTORY__SETTLE": "PT10S",
    "MARKET_PIPELINE_HISTORY__LATENESS": "PT5S",
    "MARKET_PIPELINE_LIVE__REPAIR_EVERY_S": "3",
    "MARKET_PIPELINE_LIVE__REPORT_EVERY_S": "15",
}
_EVENTS = """
query Events($key: AssetKeyInput!, $partitions: [String!]) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      assetMaterializations(partitions: $partitions, limit: 5) {
        partition
        metadataEntries { label ... on IntMetadataEntry { intValue } ... on BoolMetadataEntry { boolValue } }
      }
    }
  }
}
"""


class Live:
    """A stack with the live sensor on."""

    def __init__(self, stack: Stack, room: ControlRoom, began: datetime) -> None:
        self.stack, self.room, self.began = stack, room, began

    def query(self, sql: str) -> pl.DataFrame:
        client = connect(self.stack.settings.clickhouse)
        try:
            return client.frame(sql)
        finally:
            client.close()

    def bars(self, key: str, timeframe: str, start: datetime, end: datetime) -> pl.DataFrame:
        frame = self.query(
            f"SELECT * FROM bars_final WHERE symbol = '{key}' AND timeframe = '{timeframe}' "
            f"AND ts >= '{start:%Y-%m-%d %H:%M:%S}' AND ts < '{end:%Y-%m-%d %H:%M:%S}' ORDER BY ts"
        )
        return frame.with_columns(pl.col("ts").cast(pl.Datetime("ms", "UTC")))

    def live_minutes(self, since: datetime) -> int:
        return int(
            self.query(
                "SELECT count() AS n FROM bars FINAL WHERE source = 'live_aggregated' AND timeframe = '1m' "
                f"AND complete AND ts >= '{since:%Y-%m-%d %H:%M:%S}'"
            )["n"][0]
        )

    def run(self) -> dict[str, Any]:
        """Return the newest live run; empty before there is one."""
        return next(iter(self.room.runs_of("live_ingestion", 1)), {})

    def process(self) -> psutil.Process:
        """Return the process in which the live run works."""
        run_id = self.run()["runId"]
        found = [each for each in read_services(self.stack.settings) if each.run_id == run_id]
        assert found, "no service says that it belongs to the live run"
        return psutil.Process(int(found[0].instance.rpartition("-")[2]))

    def ingested_since(self, moment: datetime) -> int:
        return int(
            self.query(
                "SELECT count() AS n FROM bars_1s WHERE source = 'live_aggregated' "
                f"AND ts >= '{moment:%Y-%m-%d %H:%M:%S}'"
            )["n"][0]
        )


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    for name in ("workspace.yaml", "dagster.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "instruments.yaml").write_text(INSTRUMENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("POLYGON_API_KEY", raising=False)
        for name, value in QUICK.items():
            patch.setenv(name, value)
        patch.setenv("MARKET_PIPELINE_INSTRUMENTS_FILE", str(folder / "instruments.yaml"))
        stack = Stack(folder / "home", project_dir=folder, die_with_parent=True)
        with stack, ControlRoom(stack.settings.dagster.webserver_url) as room:
            today = datetime.now(UTC).date()
            # Up to now, in the middle of a minute, an hour and a day.
            yesterday = today - timedelta(days=1)
            load = room.launch(
                "load_history",
                tags={
                    "dagster/asset_partition_range_start": f"{yesterday}|EURUSD",
                    "dagster/asset_partition_range_end": f"{today}|ETHUSD",
                },
            )
            assert room.wait([load], timeout=180) == {load: "SUCCESS"}
            room.start_sensor("keep_live")
            running = Live(stack, room, datetime.now(UTC))
            until(lambda: running.run().get("status") == "STARTED", "no live run started")
            until(lambda: running.live_minutes(running.began - timedelta(minutes=1)), "no live minute came", 240)
            yield running
            room.stop_sensor("keep_live")


def test_a_live_run_that_is_killed_is_replaced(live: Live) -> None:
    before = live.run()["runId"]
    # A disconnect takes back a second of what was proven: well inside a minute it leaves the minute before alone.
    until(lambda: 10 <= datetime.now(UTC).second <= 45, "the middle of a minute")
    live.process().kill()
    seconds = until(lambda: live.run()["runId"] != before and live.run()["status"] == "STARTED", "no new live run", 120)
    print(f"a new live run was STARTED {seconds:.1f} s after the kill")
    assert seconds < 20
    moment = datetime.now(UTC)
    until(lambda: live.ingested_since(moment), "the new run brings no bars")
    assert [run["status"] for run in live.room.runs_of("live_ingestion")].count("STARTED") == 1


@pytest.mark.parametrize("server", ["nats", "clickhouse", "postgres"])
def test_a_server_that_is_killed_under_load_comes_back_and_ingestion_goes_on(live: Live, server: str) -> None:
    run_id = live.run()["runId"]
    state = live.stack.state()
    component = state.component(server) if state else None
    assert component is not None
    assert component.pid is not None
    psutil.Process(component.pid).kill()

    def is_back() -> bool:
        now = live.stack.state()
        found = now.component(server) if now else None
        return found is not None and found.state == "ready" and found.pid != component.pid

    until(is_back, f"{server} does not come back")
    moment = datetime.now(UTC)
    until(lambda: live.ingested_since(moment), f"no bars after {server} came back")
    assert live.run()["runId"] == run_id, "the run outlives its servers"


def test_ingestion_goes_on_while_dagster_s_storage_is_away(live: Live) -> None:
    run_id = live.run()["runId"]
    password = (live.stack.home.secrets / POSTGRES_DAGSTER).read_text()
    postgres = live.stack.settings.postgres
    with psycopg.connect(
        host=postgres.host, port=postgres.port, user="dagster", password=password, dbname="market", autocommit=True
    ) as owner:
        owner.execute("ALTER DATABASE dagster WITH ALLOW_CONNECTIONS false")
        try:
            owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'dagster'")
            # Longer than Dagster tries again, and than the sensor waits for a beat.
            time.sleep(AWAY_S)
            moment = datetime.now(UTC)
            until(lambda: live.ingested_since(moment), "no bars while Dagster's storage is away", 30)
        finally:
            owner.execute("ALTER DATABASE dagster WITH ALLOW_CONNECTIONS true")
    began = time.monotonic()
    until(lambda: live.run()["runId"], "Dagster does not come back")
    while time.monotonic() - began < 2 * STALE_S:  # time for the sensor to make up its mind
        assert (live.run()["runId"], live.run()["status"]) == (run_id, "STARTED"), "the run outlives the outage"
        time.sleep(1)


def test_after_settle_and_repair_there_is_no_seam(live: Live) -> None:
    end = datetime.now(UTC).replace(second=0, microsecond=0)
    start = datetime.combine(end.date() - timedelta(days=1), datetime.min.time(), UTC)
    expected = {key: truth_minutes(ticker, start, end) for key, ticker in SYMBOLS.items()}

    def whole() -> bool:
        for key, frame in expected.items():
            bars = live.bars(key, "1m", start, end)
            if bars.height != frame.height or not bars["complete"].all():
                return False
        return True

    try:
        until(whole, "minutes are missing or not whole", 240)
    finally:
        for key, frame in expected.items():
            bars = live.bars(key, "1m", start, end)
            incomplete = bars.filter(~pl.col("complete"))
            absent = frame.join(bars, on="ts", how="anti")
            print(f"{key}: {bars.height} of {frame.height} minutes, {incomplete.height} not complete")
            print(bars.group_by("source").len().rows(), absent.head(5).rows(), incomplete.head(5).rows())
    for key, frame in expected.items():
        bars = live.bars(key, "1m", start, end)
        assert_bars_equal(bars, frame, f"{key} 1m")
        sources = set(bars["source"].unique())
        if key != "EURUSD":  # crypto trades at every hour at which this may run
            assert {"vendor_historical", "live_aggregated"} <= sources

    def derived() -> bool:
        for key, frame in expected.items():
            for code in DERIVED:
                closed = [ts for ts in _opens(frame, code) if ts + TIMEFRAMES[code].length <= end]
                found = live.bars(key, code, start, end).filter(pl.col("ts").is_in(closed))
                fold = fold_independently(frame, code).filter(pl.col("ts").is_in(closed))
                inside = fold.filter(pl.col("ts") >= start)  # a week's first days lie before what was loaded
                try:
                    assert_bars_equal(found, inside, f"{key} {code}")
                except AssertionError as error:
                    raise AssertionError(f"{key} {code}: {error}") from None
        return True

    until(derived, "derived bars disagree with their minutes", 120)


def test_the_live_run_shows_on_the_assets(live: Live) -> None:
    today = datetime.now(UTC).date()
    key = f"{today}|BTCUSD"

    def entries(asset: str) -> dict[str, Any]:
        found = live.room.query(_EVENTS, key={"path": [asset]}, partitions=[key])
        events = found["assetNodeOrError"]["assetMaterializations"]
        return {
            entry["label"]: entry.get("intValue", entry.get("boolValue"))
            for event in events[:1]
            for entry in event["metadataEntries"]
        }

    until(lambda: entries("market_ticks").get("ticks in the day's live minutes"), "no ticks on market_ticks")
    until(lambda: entries("bars_1m").get("live bars"), "no live bars on bars_1m")
    assert entries("bars_1m")["partial"] is True
    assert entries("bars_5m")["dagster/partition_row_count"] > 0


@pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed: this test looks at the UI in it")
def test_the_ui_shows_live_partitions_and_the_sensor(live: Live) -> None:
    with Chromium() as browser:
        browser.open(f"{live.room.url}/assets/market_ticks?view=partitions", "market_ticks", "BTCUSD")
    with Chromium() as browser:  # one that remembers nothing: leaving a page early leaves half a workspace in its cache
        browser.open(f"{live.room.url}/automation", "keep_live")


def test_the_run_ends_with_a_word_and_leaves_nothing_behind(live: Live) -> None:
    live.room.stop_sensor("keep_live")
    run_id, process = live.run()["runId"], live.process()
    live.room.terminate(run_id)
    until(lambda: live.room.run(run_id)["status"] in ("CANCELED", "FAILURE", "SUCCESS"), "the run does not end", 90)
    until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "its process stays", 60)


def _opens(frame: pl.DataFrame, code: str) -> list[datetime]:
    return fold_independently(frame, code)["ts"].to_list()

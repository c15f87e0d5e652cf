"""`make screenshots`: photograph the running stack's Dagster UI into docs/images."""

from __future__ import annotations

import argparse
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from market_pipeline.local.control_room import ControlRoom
from market_pipeline.read import bars
from market_pipeline.settings import load_settings
from market_pipeline_tests.browser.chromium import Chromium

SETTLE_S = 4.0
"""Colours, counts and pictures come after the words."""
IMAGES = Path(__file__).parents[2] / "docs" / "images"


def pages(day: date, live_run: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the pictures: file name -> path, and words that must stand on the page."""
    today = datetime.now(UTC).date()
    return {
        "live-run": (f"/runs/{live_run}", ("live_ingestion", "collector")),
        "live-sensor": ("/locations/market_pipeline.definitions/sensors/keep_live", ("keep_live", "live_ingestion")),
        "live-ticks": (f"/assets/market_ticks?view=partitions&partition={today}%7CBTCUSD", ("BTCUSD", "ticks in the")),
        "live-minutes": (f"/assets/bars_1m?view=partitions&partition={today}%7CBTCUSD", ("BTCUSD", "live bars")),
        "asset-graph": (
            "/assets/bars_1m?view=lineage&lineageScope=neighbors&lineageDepth=10",
            ("vendor_minutes", "bars_1m", "bars_1w"),
        ),
        "asset-overview": ("/assets/bars_1m?view=overview", ("One-minute bars as the vendor gives them", "Columns")),
        "asset-partitions": (f"/assets/bars_1m?view=partitions&partition={day}%7CEURUSD", ("EURUSD", "coverage")),
        "asset-checks": ("/assets/bars_1m?view=checks&checkDetail=gaps", ("gaps", "ohlc_sanity")),
        "runs": ("/runs", ("load_history",)),
        "automation": ("/automation", ("nightly",)),
    }


def main() -> None:
    """Take every picture."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--home", default=".market_pipeline")
    arguments.add_argument("--out", type=Path, default=IMAGES)
    options = arguments.parse_args()
    settings = load_settings(options.home)
    url = settings.dagster.webserver_url
    newest = bars("EUR/USD", "1m", date.today() - timedelta(days=30), datetime.now(UTC), settings=settings)
    with ControlRoom(url) as room:
        runs = room.runs_of("live_ingestion")
    live_run = next((run["runId"] for run in runs if run["status"] == "STARTED"), "")
    with Chromium() as browser:
        for name, (path, words) in pages(newest["ts"][-1].date(), live_run).items():
            try:
                browser.open(url + path, *words)
            except TimeoutError as error:
                print(f"{name}: {error}")
            time.sleep(SETTLE_S)
            browser.picture(options.out / f"{name}.png")
            print(f"{name}.png  {url}{path}")


if __name__ == "__main__":
    main()

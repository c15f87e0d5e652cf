"""`make screenshots`: photograph the running stack's Dagster UI into docs/images."""

from __future__ import annotations

import argparse
from pathlib import Path

from market_pipeline.local.control_room import ControlRoom
from market_pipeline.settings import load_settings
from market_pipeline_tests.browser.chromium import Chromium

IMAGES = Path(__file__).parents[2] / "docs" / "images"


def pages(location: str, repository: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the pictures: file name -> path, and words that must stand on the page."""
    return {
        "asset-graph": ("/asset-groups", ("bars_1m", "bars_1w", "bars_5m")),
        "asset-overview": ("/assets/bars_1m?view=overview", ("bars_1m", "Description")),
        "asset-partitions": ("/assets/bars_1m?view=partitions", ("Partitions", "EURUSD")),
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
    url = load_settings(options.home).dagster.webserver_url
    with ControlRoom(url) as room, Chromium() as browser:
        location, repository = room.location()
        for name, (path, words) in pages(location, repository).items():
            try:
                browser.open(url + path, *words)
            except TimeoutError as error:
                print(f"{name}: {error}")
            browser.picture(options.out / f"{name}.png")
            print(f"{name}.png  {url}{path}")


if __name__ == "__main__":
    main()

"""`make bench`: the road of a bar against a bare script that downloads, inserts and aggregates the same bars."""

from __future__ import annotations

import argparse
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from market_pipeline.local.clickhouse import process
from market_pipeline.simulator import server as simulator
from market_pipeline_tests.benchmarks import bare
from market_pipeline_tests.integration.world import World, make_settings
from market_pipeline_tests.servers import NatsProcess

TICKERS = {
    "EURUSD": "C:EURUSD",
    "BTCUSD": "X:BTCUSD",
    "GBPUSD": "C:GBPUSD",
    "ETHUSD": "X:ETHUSD",
    "USDJPY": "C:USDJPY",
    "AUDUSD": "C:AUDUSD",
    "USDCHF": "C:USDCHF",
    "USDCAD": "C:USDCAD",
}


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Run the rounds in turn and print medians and ratios."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--symbols", type=int, default=4)
    arguments.add_argument("--days", type=int, default=364)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    tickers = dict(list(TICKERS.items())[: options.symbols])
    first = date(2022, 1, 2)
    end = first + timedelta(days=options.days)
    wanted = {symbol: [(first, end)] for symbol in tickers}
    console = Console()
    seconds: dict[str, list[float]] = {"bare script": [], "the road": [], "the road, equal data again": []}
    rows = 0
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        process.start(Path(folder) / "clickhouse") as clickhouse,
        simulator.start() as vendor,
        NatsProcess() as nats,
    ):
        # The vendor's first rendering of a range is not part of either time.
        settings = make_settings(Path(folder) / "home", nats, clickhouse, vendor)
        bare.run(settings, tickers, first, end, "bare_warm_up")
        for number in range(options.rounds):
            world = World(
                make_settings(Path(folder) / f"home{number}", nats, clickhouse, vendor), nats, clickhouse, vendor
            )

            def plain() -> None:
                nonlocal rows
                rows = bare.run(world.settings, tickers, first, end, f"bare_{secrets.token_hex(3)}")  # noqa: B023

            def road() -> None:
                world.load(wanted)  # noqa: B023
                world.derive(wanted)  # noqa: B023

            seconds["bare script"].append(timed(plain))
            seconds["the road"].append(timed(road))
            seconds["the road, equal data again"].append(timed(road))
            console.print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:.1f} s" for k, v in seconds.items()))
    table = Table(
        title=f"{rows:,} bars: minutes of {len(tickers)} symbols over {options.days} days, and all timeframes"
    )
    for column in ("", "median s", "bars/s", "bare / it"):
        table.add_column(column, justify="right")
    base = statistics.median(seconds["bare script"])
    for name, values in seconds.items():
        median = statistics.median(values)
        table.add_row(name, f"{median:.1f}", f"{rows / median:,.0f}", f"{base / median:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()

"""`make bench-live`: ticks a second through the whole live road, its latency, memory and processor time.

`python -m market_pipeline_tests.benchmarks.live --rate 20000 --seconds 120`, and `--rate 5000` for the latency. The
simulated vendor, NATS, PostgreSQL and ClickHouse run on the same machine. `--layout bare` times a bare script instead.
Exit code 1 where what is stored is not what was sent.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from market_pipeline.local.passwords import SIMULATOR_CONTROL
from market_pipeline.local.stack import Stack
from market_pipeline.settings import Settings
from market_pipeline.simulator.client import ControlClient
from market_pipeline.simulator.secret_files import read_secret
from market_pipeline.simulator.tickers import load_tickers
from market_pipeline.stores.clickhouse import connect

WARM_S = 8.0
DRAIN_S = 120.0
# One process for all, as the live run; or the three of `market-pipeline run` that a container set-up has.
LAYOUTS: dict[str, list[list[str]]] = {
    "one": [["all"]],
    "split": [["collector"], ["aggregator", "bridge"], ["ticks"]],
}


@dataclass
class Meter:
    """Processor time and memory of some processes."""

    processes: dict[str, psutil.Process]
    before: dict[str, float] = field(default_factory=dict)
    memory: dict[str, list[float]] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin to count."""
        self.before = {name: _cpu(process) for name, process in self.processes.items()}

    def sample(self) -> None:
        """Note how much memory each holds."""
        for name, process in self.processes.items():
            self.memory.setdefault(name, []).append(_tree(process, lambda p: p.memory_info().rss))

    def cpu(self) -> dict[str, float]:
        """Return the seconds of processor time since `begin`."""
        return {name: _cpu(process) - self.before[name] for name, process in self.processes.items()}


def main() -> None:
    """Run one measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=20_000, help="ticks a second over all symbols")
    parser.add_argument("--symbols", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--layout", choices=[*LAYOUTS, "bare"], default="one")
    options = parser.parse_args()
    console = Console(width=130)
    tickers = load_tickers("forex", options.symbols)
    with tempfile.TemporaryDirectory(prefix="bench-live-") as folder:
        home = Path(folder) / "home"
        instruments = Path(folder) / "instruments.yaml"
        instruments.write_text(_instruments(tickers))
        os.environ["MARKET_PIPELINE_INSTRUMENTS_FILE"] = str(instruments)
        with Stack(home, ("nats", "postgres", "clickhouse", "simulator"), die_with_parent=True) as stack:
            sent, stored = measure(stack, tickers, options, console)
    end(sent, stored)


def end(sent: int, stored: int) -> None:
    """Raise where not each tick is stored once: then the figures are of no worth.

    Raises:
        SystemExit: with exit code 1.
    """
    if stored != sent:
        raise SystemExit(f"NOT EQUAL: {stored:,} rows are stored of {sent:,} that were sent")


def measure(stack: Stack, tickers: list[str], options: argparse.Namespace, console: Console) -> tuple[int, int]:
    """Start the live processes, load the vendor, and tell what came of it; return the ticks sent, and those stored."""
    settings, home = stack.settings, stack.home.root
    control = ControlClient(settings.vendor.base_url, read_secret(stack.home.secrets / SIMULATOR_CONTROL))
    bare = options.layout == "bare"
    pairs = [f"{ticker[2:5]}/{ticker[5:]}" for ticker in tickers]
    commands = (
        {"bare script": ["-m", "market_pipeline_tests.benchmarks.bare_live", str(home), *pairs]}
        if bare
        else {
            "+".join(names): ["-m", "market_pipeline.cli", "run", *names, "--home", str(home)]
            for names in LAYOUTS[options.layout]
        }
    )
    log = home / "logs" / "live.log"
    with log.open("ab") as output:
        running = {
            name: subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output)
            for name, arguments in commands.items()
        }
    try:
        control.stream_settings(connections_per_key=4)
        _await(lambda: sum(map(len, control.stream_stats()["subscriptions"].values())) >= len(tickers), 60, log)
        control.load(tickers, options.rate // len(tickers))
        time.sleep(WARM_S)
        meter = Meter(
            {name: psutil.Process(process.pid) for name, process in running.items()}
            | {
                name: psutil.Process(component.pid)
                for name in ("nats", "postgres", "clickhouse", "simulator")
                if (state := stack.state()) and (component := state.component(name)) and component.pid
            }
        )
        meter.begin()
        first = control.stream_stats()["sent_total"]
        began = time.time()
        while time.time() - began < options.seconds:
            time.sleep(1.0)
            meter.sample()
        sent = control.stream_stats()["sent_total"] - first
        cpu, seconds = meter.cpu(), time.time() - began
        control.load([], 0)
        control.stream_fault("silence", market="forex")  # without a load it sends what such a market sends
        time.sleep(1.0)  # what was due is still being written
        total = control.stream_stats()["sent_total"]
        table_name = "bare_ticks" if bare else "market_ticks"
        drained = time.time()
        _await(lambda: count_ticks(settings, table_name) >= total, DRAIN_S, log)
        stored = count_ticks(settings, table_name)
        console.print(
            f"{options.layout}: {sent / seconds:,.0f} ticks/s of {len(tickers)} symbols for {seconds:.0f} s; "
            f"sent {total:,}, stored {stored:,} ({'each once' if stored == total else 'NOT EQUAL'}), "
            f"the last {time.time() - drained:.1f} s after the end"
        )
        _print_costs(console, meter, cpu, sent, seconds)
        _print_latency(console, settings, "bare_1s" if bare else "bars_1s")
        return total, stored
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait(60)


def count_ticks(settings: Settings, table: str) -> int:
    """Count the ticks stored."""
    where = settings.postgres
    with psycopg.connect(
        host=where.host,
        port=where.port,
        user=where.user,
        password=where.password.get_secret_value(),
        dbname=where.database,
    ) as connection:
        statement = "SELECT count(*) FROM bare_ticks" if table == "bare_ticks" else "SELECT count(*) FROM market_ticks"
        row = connection.execute(statement).fetchone()
    return int(row[0]) if row else 0


def _print_costs(console: Console, meter: Meter, cpu: dict[str, float], ticks: int, seconds: float) -> None:
    table = Table("process", "cores", "CPU s a million ticks", "MiB after a fifth", "MiB at the end", "MiB at most")
    for name, spent in cpu.items():
        samples = [value / 2**20 for value in meter.memory[name]]
        table.add_row(
            name,
            f"{spent / seconds:.2f}",
            f"{spent / ticks * 1e6:.1f}",
            f"{samples[len(samples) // 5]:,.0f}",
            f"{samples[-1]:,.0f}",
            f"{max(samples):,.0f}",
        )
    ours = sum(spent for name, spent in cpu.items() if name != "simulator")
    table.add_row("all but the vendor", f"{ours / seconds:.2f}", f"{ours / ticks * 1e6:.1f}")
    console.print(table)


def _print_latency(console: Console, settings: Settings, table: str) -> None:
    client = connect(settings.clickhouse)
    try:
        if table == "bare_1s":
            return
        frame = client.frame(
            "SELECT count() AS n, quantilesExact(0.5, 0.95, 0.99, 1.0)(late) AS q FROM (SELECT symbol, ts, "
            "toUnixTimestamp64Milli(min(ingested_at)) - toUnixTimestamp64Milli(ts) - 1000 AS late "
            "FROM bars_1s GROUP BY symbol, ts)"
        )
    finally:
        client.close()
    n, (p50, p95, p99, most) = frame["n"][0], frame["q"][0]
    console.print(
        f"{n:,} bars of 1s; from the end of the second (its last tick's time) to the row in ClickHouse: "
        f"p50 {p50:,.0f} ms, p95 {p95:,.0f} ms, p99 {p99:,.0f} ms, at most {most:,.0f} ms"
    )


def _instruments(tickers: list[str]) -> str:
    entries = [
        f'  - {{symbol: {ticker[2:5]}/{ticker[5:]}, asset_class: forex, vendor_ticker: "{ticker}", calendar: forex, '
        "history_start: 2020-01-01, price_basis: bid}"
        for ticker in tickers
    ]
    return "instruments:\n" + "\n".join(entries) + "\n"


def _await(holds: Callable[[], bool], seconds: float, log: Path) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise SystemExit(f"it did not come to be; last lines:\n{log.read_text()[-3000:]}")
        time.sleep(0.25)


def _cpu(process: psutil.Process) -> float:
    return _tree(process, lambda p: sum(p.cpu_times()[:2]))


def _tree(process: psutil.Process, value: Callable[[psutil.Process], float]) -> float:
    """Add something up over a process and its descendants, the dead ones' time included where the kernel adds it."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            total += value(each)
        except psutil.Error:
            continue
    return total


if __name__ == "__main__":
    main()

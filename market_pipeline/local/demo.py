"""The demo: from nothing to checked bars of every timeframe, live ones too, and a summary of what came of it."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from market_pipeline.errors import LocalStackError
from market_pipeline.local.control_room import CheckVerdict, ControlRoom
from market_pipeline.local.disk import DEFAULT_MIN_FREE_MB
from market_pipeline.local.environment import HOME_VARIABLE
from market_pipeline.local.layout import Home
from market_pipeline.local.stack import Stack
from market_pipeline.market.timeframes import DERIVED
from market_pipeline.stores.bar_facts import BarFacts
from market_pipeline.stores.clickhouse import connect
from market_pipeline.stores.ledgers import IngestLedger
from market_pipeline.stores.seconds import AllBarStore

DAYS = 35
KEEP_LIVE, LIVE_INGESTION = "keep_live", "live_ingestion"
MINUTES_TO_GO_LIVE = 5
ASSETS = ("bars_1m", *(f"bars_{code}" for code in DERIVED))
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
MINUTES_TO_FINISH = 10


@dataclass(frozen=True)
class Part:
    """One run of `load_history`: a range of days and of symbols, in the order of instruments.yaml."""

    name: str
    first: date
    last: date
    first_symbol: str
    last_symbol: str

    @property
    def tags(self) -> dict[str, str]:
        """The tags that give a run this range."""
        return {
            RANGE_START: f"{self.first}|{self.first_symbol}",
            RANGE_END: f"{self.last}|{self.last_symbol}",
            "market_pipeline/demo": "true",
        }


def parts(now: datetime) -> list[Part]:
    """Return what the demo loads: five weeks of four symbols up to the last finished day, and two real recordings.

    Only days that are over and settled, so that a second demo finds nothing new to write.
    """
    last = (now - timedelta(hours=1)).date() - timedelta(days=1)
    return [
        Part(f"the last {DAYS} days of four symbols", last - timedelta(days=DAYS - 1), last, "EURUSD", "SPY"),
        Part("EUR/USD, May 2014 (a real recording)", date(2014, 5, 1), date(2014, 5, 16), "EURUSD", "EURUSD"),
        Part("SPY, October 2013 (a real recording)", date(2013, 10, 1), date(2013, 10, 31), "SPY", "SPY"),
    ]


def next_steps(home: Path, now: datetime, *, live: bool) -> list[str]:
    """Return commands that show what the demo has loaded, ready to be copied.

    A week ends with the last day loaded, so that some of its days were no weekend; what was known can be asked for any
    moment since the load.
    """
    last = parts(now)[0].last
    week = f"--from {last - timedelta(days=6)} --to {last + timedelta(days=1)}"
    commands = [
        f"bars EUR/USD 1h {week}",
        f"bars EUR/USD 1h {week} --as-of {now:%Y-%m-%dT%H:%M:%S}",
        f"trace BTC/USD 1h {last}T12:00",
    ]
    if live:
        commands += ["bars BTC/USD 1s --limit 5", "services"]
    found = Home.at(os.environ.get(HOME_VARIABLE) or ".market_pipeline") == Home.at(home)
    where = "" if found else f" --home {shlex.quote(str(home))}"
    return [f"market-pipeline {command}{where}" for command in (*commands, "down")]


def run_demo(home: Path, console: Console, *, min_free_mb: int = DEFAULT_MIN_FREE_MB) -> None:
    """Run the demo in `home`; the stack is left running.

    Raises:
        LocalStackError: the stack does not start, or a run fails.
    """
    began = time.monotonic()
    stack = Stack(home, project_dir=Path.cwd(), min_free_mb=min_free_mb)
    with console.status(
        "starting the local stack: NATS, PostgreSQL, ClickHouse, a simulated vendor, Dagster ..."
    ) as status:
        stack.start(
            lambda state: status.update(
                "starting: " + ", ".join(f"{c.name} {c.state}" for c in state.components if c.state != "ready")
            )
        )
    settings = stack.settings
    console.print(f"stack ready after {time.monotonic() - began:.0f} s; Dagster: {settings.dagster.webserver_url}")
    simulated = not settings.vendor.base_url.startswith("https://")
    if not simulated:
        console.print("POLYGON_API_KEY is set: the demo asks the real vendor, at the rate of your plan, and does not")
        console.print("go live: if your plan includes streaming, turn on the sensor keep_live in the UI (Automation).")

    client = connect(settings.clickhouse)
    store, ledger = AllBarStore(client), IngestLedger(client)
    went_live = datetime.now(UTC)
    with ControlRoom(settings.dagster.webserver_url) as room:
        if simulated:
            room.start_sensor(KEEP_LIVE)
            console.print("  live     the sensor keep_live is on: it launches live_ingestion and keeps it alive")
        runs = {room.launch("load_history", tags=part.tags): part for part in parts(datetime.now(UTC))}
        _follow(room, console, {run: f"load_history: {part.name}" for run, part in runs.items()})
        repair = room.launch("repair_gaps")
        _follow(room, console, {repair: "repair_gaps: ask once more for every minute that is missing"})
        written = sum(_rows_written(ledger, run) for run in (*runs, repair))
        if simulated:
            _wait_for_live(room, store, console, went_live)
        checks = room.launch("check_bars")
        _follow(room, console, {checks: "check_bars: every check over all that was loaded"})
        verdicts = room.checks(ASSETS)
    _summary(console, store, verdicts)
    if simulated:
        _live_summary(console, store, ledger, went_live)
    console.print(f"new rows of history written: {written:,}   time: {time.monotonic() - began:.0f} s")
    console.print(f"Dagster UI:  {settings.dagster.webserver_url}")
    console.print("Next, in this folder, after `. .venv/bin/activate`:")
    for command in next_steps(home, datetime.now(UTC), live=simulated):
        console.print(f"  {command}", soft_wrap=True, highlight=False)


def _rows_written(ledger: IngestLedger, run_id: str) -> int:
    """Return the rows by which a run changed the store."""
    return int(
        ledger.run_summary(run_id).select(pl.sum("new_rows", "restated_rows", "withdrawn_rows")).sum_horizontal()[0]
    )


def _wait_for_live(room: ControlRoom, store: BarFacts, console: Console, since: datetime) -> None:
    """Wait until a minute made of live ticks alone, whole and proven, is stored.

    Raises:
        LocalStackError: none came in time; the message says where to look.
    """
    until = time.monotonic() + 60 * MINUTES_TO_GO_LIVE
    with console.status("waiting for the first whole live minute ...") as status:
        while True:
            live = store.live_bars("1m", since)
            if int(live["complete_rows"].sum()):
                return
            newest = (room.runs_of(LIVE_INGESTION, 1) or [{}])[0]
            status.update(
                f"waiting for the first whole live minute: run {str(newest.get('status', 'not launched')).lower()}, "
                f"{int(live['rows'].sum())} begun ..."
            )
            if time.monotonic() > until:
                where = f"{room.url}/runs/{newest['runId']}" if newest else f"{room.url}/automation"
                raise LocalStackError(f"no live bar came within {MINUTES_TO_GO_LIVE} minutes: look at {where}")
            time.sleep(1)


def _follow(room: ControlRoom, console: Console, runs: dict[str, str]) -> None:
    """Wait for runs; say how each ended.

    Raises:
        LocalStackError: a run failed; the message names it and where to look.
    """
    with console.status("waiting for Dagster's runs ...") as status:

        def tick(statuses: dict[str, str]) -> None:
            status.update("; ".join(f"{runs[run]}: {state.lower()}" for run, state in statuses.items()))

        statuses = room.wait(list(runs), timeout=60 * MINUTES_TO_FINISH, tick=tick)
    for run, state in statuses.items():
        console.print(f"  {state.lower():8} {runs[run]}")
    failed = [run for run, state in statuses.items() if state != "SUCCESS"]
    if failed:
        links = ", ".join(f"{room.url}/runs/{run}" for run in failed)
        raise LocalStackError(f"{len(failed)} run(s) did not succeed: look at {links}")


def _summary(
    console: Console,
    store: BarFacts,
    verdicts: Iterable[CheckVerdict],
) -> None:
    overview = store.overview()
    table = Table(title="Winning bars in ClickHouse")
    table.add_column("symbol")
    for code in ("1m", *DERIVED):
        table.add_column(code, justify="right")
    table.add_column("from")
    table.add_column("to")
    for (symbol,), rows in overview.group_by("symbol", maintain_order=True):
        counts = dict(rows.select("timeframe", "bars").iter_rows())
        minutes = rows.filter(pl.col("timeframe") == "1m")
        days = minutes.select(pl.col("first_ts").min().dt.date(), pl.col("last_ts").max().dt.date()).row(0)
        table.add_row(
            str(symbol),
            *(f"{counts.get(code, 0):,}" for code in ("1m", *DERIVED)),
            *(str(day) for day in days),
        )
    console.print(table)

    checks = Table(title="Asset checks")
    for column in ("asset", "check", "verdict", "what it says"):
        checks.add_column(column, overflow="fold")
    for each in verdicts:
        checks.add_row(each.asset, each.name, _verdict(each), each.description)
    console.print(checks)


def _live_summary(console: Console, store: BarFacts, ledger: IngestLedger, since: datetime) -> None:
    """Show what has come in live since the demo began, and how late it was."""
    table = Table(title=f"Live since {since:%H:%M:%S} UTC")
    for column in ("symbol", "ticks", "1s bars", "1m bars", "whole and proven", "last 1m bar"):
        table.add_column(column, justify="left" if column == "symbol" else "right")
    seconds = dict(store.live_bars("1s", since).select("symbol", "rows").iter_rows())
    for row in store.live_bars("1m", since).iter_rows(named=True):
        table.add_row(
            row["symbol"],
            f"{row['ticks']:,}",
            f"{seconds.get(row['symbol'], 0):,}",
            f"{row['rows']:,}",
            f"{row['complete_rows']:,}",
            f"{row['last_ts']:%H:%M}",
        )
    console.print(table)
    latency = ledger.live_latency(since)
    if latency:
        shown = ", ".join(f"{name.replace('_', ' ')} {value:,.0f}" for name, value in latency.items())
        console.print(f"live latency (ms): {shown}")


def _verdict(each: CheckVerdict) -> str:
    if each.status == "SUCCEEDED":
        return "[green]passed[/green]"
    if each.status == "FAILED":
        return "[yellow]warning[/yellow]" if each.severity == "WARN" else "[red]failed[/red]"
    return each.status.lower() or "not run yet"

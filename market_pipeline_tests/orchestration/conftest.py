"""The code location over three instruments, with stand-ins for the history room and the stores.

What is under test here is the plumbing between Dagster and the rooms; the rooms themselves, with real servers, are
tested in history/, stores/ and integration/.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import polars as pl
import pytest

import market_pipeline
from market_pipeline.bus.dead_letter_box import Unread
from market_pipeline.history.reports import (
    DAY_SCHEMA,
    DeriveReport,
    LoadReport,
    ReconcileReport,
    RepairReport,
    SeriesCounts,
    SymbolLoad,
)
from market_pipeline.market.bars import BAR_SCHEMA
from market_pipeline.market.instruments import Instruments, parse_instruments
from market_pipeline.orchestration import resources
from market_pipeline.orchestration.build import build_definitions
from market_pipeline.orchestration.checks.gap_rules import GAP_SCHEMA
from market_pipeline.orchestration.partitions import BarPartitions, bar_partitions, sunday_of
from market_pipeline.orchestration.progress import Progress

INSTRUMENTS = """
instruments:
  - {symbol: EUR/USD, asset_class: forex, vendor_ticker: "C:EURUSD", calendar: forex, history_start: 2019-01-01}
  - {symbol: BTC/USD, asset_class: crypto, vendor_ticker: "X:BTCUSD", calendar: crypto, history_start: 2019-01-01}
  - {symbol: SPY, asset_class: stock, vendor_ticker: SPY, calendar: XNYS, history_start: 2020-01-06, partition: us}
  - {symbol: IBM, asset_class: stock, vendor_ticker: IBM, calendar: XNYS, history_start: 2019-06-03, partition: us}
"""

LEDGER_SCHEMA = {
    **{{"start": "start_ts", "end": "end_ts"}.get(name, name): dtype for name, dtype in GAP_SCHEMA.items()},
    "version": pl.UInt64(),
}


@dataclass
class Calls:
    """What the stand-ins were asked, and what they shall do."""

    loads: list[dict[str, Any]] = field(default_factory=list)
    derivations: list[dict[str, Any]] = field(default_factory=list)
    repairs: list[dict[str, Any]] = field(default_factory=list)
    reconciliations: list[dict[str, Any]] = field(default_factory=list)
    reconciled: ReconcileReport = field(default_factory=lambda: ReconcileReport(winner="live_aggregated"))
    error: Exception | None = None
    partial_from: date = date(2100, 1, 1)


@dataclass(frozen=True)
class Look:
    phase: str = "loading"
    symbol: str = "EUR/USD"
    done_minutes: int = 1440
    total_minutes: int = 1440
    rows: int = 1440
    rows_per_second: float = 1000.0
    seconds_left: float | None = None


def _days(ranges: list[tuple[date, date]]) -> list[date]:
    return [start + timedelta(days=n) for start, end in ranges for n in range((end - start).days)]


def load_report(wanted: dict[str, list[tuple[date, date]]], partial_from: date) -> LoadReport:
    report = LoadReport(seconds=2.0, retries={"status 429": 2}, latency_ms={"p50": 12.0, "p99": 80.5})
    for symbol, ranges in wanted.items():
        days = pl.DataFrame(
            [(day, 1430, 1440, 10, day >= partial_from) for day in _days(ranges)], schema=DAY_SCHEMA, orient="row"
        )
        start = datetime(2024, 3, 4, 10, tzinfo=UTC)
        gaps = pl.DataFrame(
            [(symbol, start, start + timedelta(minutes=10), 10, "vendor_missing", "open", 1, "", 7)],
            schema=LEDGER_SCHEMA,
            orient="row",
        )
        counts = SeriesCounts(rows=1430 * days.height, new=1430 * days.height)
        report.symbols[symbol] = SymbolLoad(symbol, counts=counts, requests=1, days=days, gaps=gaps)
    return report


def derive_report(wanted: dict[str, list[tuple[date, date]]], timeframes: list[str]) -> DeriveReport:
    report = DeriveReport(minutes_read=100, seconds=1.0)
    schema = {"date": pl.Date, "rows": pl.UInt32, "complete": pl.UInt32}
    for symbol, ranges in wanted.items():
        for code in timeframes:
            days = _days(ranges)
            if code == "1w":
                days = sorted({sunday_of(day) for day in days})
            rows = [(day, 7, 6) for day in days]
            report.days[(symbol, code)] = pl.DataFrame(rows, schema=schema, orient="row")
            report.by_symbol[(symbol, code)] = SeriesCounts(rows=7 * len(days), new=7 * len(days))
    return report


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Put stand-ins in the place of the history functions."""
    calls = Calls()

    def note(progress: Any) -> None:
        if progress is not None:
            look: Progress = Look()
            progress(look)
        if calls.error is not None:
            raise calls.error

    def load_minutes(settings: Any, wanted: Any, *, run_id: str, root_run_id: str, progress: Any = None) -> LoadReport:
        calls.loads.append({"wanted": wanted, "run_id": run_id, "root_run_id": root_run_id, "settings": settings})
        note(progress)
        return load_report(wanted, calls.partial_from)

    def derive_bars(settings: Any, wanted: Any, timeframes: Any, *, run_id: str, progress: Any = None) -> DeriveReport:
        calls.derivations.append({"wanted": wanted, "timeframes": list(timeframes), "run_id": run_id})
        note(progress)
        return derive_report(wanted, list(timeframes))

    def repair_gaps(
        settings: Any, *, symbols: Any, retry_given_up: bool, run_id: str, root_run_id: str, progress: Any = None
    ) -> RepairReport:
        calls.repairs.append({"symbols": symbols, "retry_given_up": retry_given_up, "run_id": run_id})
        note(progress)
        wanted = {"EURUSD": [(date(2024, 3, 4), date(2024, 3, 6))]}
        return RepairReport(
            found_gaps=2,
            found_minutes=20,
            repaired_minutes=20,
            asked_requests=1,
            load=load_report(wanted, calls.partial_from),
            derived=derive_report(wanted, ["5m", "15m", "30m", "1h", "4h", "1d", "1w"]),
        )

    def reconcile_live(
        settings: Any, wanted: Any, *, run_id: str, root_run_id: str, progress: Any = None
    ) -> ReconcileReport:
        calls.reconciliations.append({"wanted": wanted, "run_id": run_id, "root_run_id": root_run_id})
        note(progress)
        return calls.reconciled

    stand_in = SimpleNamespace(
        load_minutes=load_minutes, derive_bars=derive_bars, repair_gaps=repair_gaps, reconcile_live=reconcile_live
    )
    monkeypatch.setattr(market_pipeline, "history", stand_in, raising=False)
    return calls


@dataclass
class StoredBars:
    """Stand in for the stores: winning bars by (symbol, timeframe), implausible bars, the ledgers' answers."""

    frames: dict[tuple[str, str], pl.DataFrame] = field(default_factory=dict)
    bad: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema={**BAR_SCHEMA, "reason": pl.String()}))
    asked_ranges: dict[str, list[tuple[datetime, datetime]]] = field(default_factory=dict)
    ledger: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=LEDGER_SCHEMA))
    error: Exception | None = None
    unread: Unread = field(default_factory=Unread)

    def winners(self, symbol: str, timeframe: str, start: datetime, end: datetime, columns: Any = None) -> pl.DataFrame:
        frame = self.frames.get((symbol, timeframe), pl.DataFrame(schema=BAR_SCHEMA))
        frame = frame.filter((pl.col("ts") >= start) & (pl.col("ts") < end))
        return frame if columns is None else frame.select(list(columns))

    def latest(self, symbols: Any, timeframe: str) -> pl.DataFrame:
        rows = [(s, f["ts"].max()) for (s, t), f in self.frames.items() if t == timeframe and s in symbols and f.height]
        return pl.DataFrame(rows, schema={"symbol": pl.String, "ts": pl.Datetime("ms", "UTC")}, orient="row")

    def source_spans(self, symbols: Any, timeframe: str, source: str, start: datetime, end: datetime) -> pl.DataFrame:
        written = {
            s: self.stored_rows(s, timeframe, source, start, end - timedelta(milliseconds=1))["ts"] for s in symbols
        }
        rows = [(s, found.min(), found.max()) for s, found in written.items() if len(found)]
        ts = pl.Datetime("ms", "UTC")
        return pl.DataFrame(rows, schema={"symbol": pl.String, "first_ts": ts, "last_ts": ts}, orient="row")

    def stored_rows(self, symbol: str, timeframe: str, source: str, first: datetime, last: datetime) -> pl.DataFrame:
        frame = self.frames.get((symbol, timeframe), pl.DataFrame(schema=BAR_SCHEMA))
        if "source" not in frame.columns:
            return pl.DataFrame(schema=BAR_SCHEMA)
        return frame.filter((pl.col("source") == source) & pl.col("ts").is_between(first, last))

    def implausible(
        self, symbols: Any, timeframes: Any, start: datetime, end: datetime, *, limit: int = 1000
    ) -> pl.DataFrame:
        return self.bad.filter(pl.col("symbol").is_in(list(symbols))).head(limit)

    def asked(
        self, symbol: str, start: datetime, end: datetime, *, settle: timedelta
    ) -> list[tuple[datetime, datetime]]:
        return self.asked_ranges.get(symbol, [])

    def table(self, symbols: Any, *, states: Any = ("open", "confirmed")) -> pl.DataFrame:
        return self.ledger.filter(pl.col("symbol").is_in(list(symbols)) & pl.col("state").is_in(list(states)))


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> StoredBars:
    """Put a stand-in in the place of the stores."""
    stored = StoredBars()

    @contextmanager
    def open_stores(_: Any) -> Iterator[Any]:
        if stored.error is not None:
            raise stored.error
        yield SimpleNamespace(bars=stored, gaps=stored, requests=stored)

    monkeypatch.setattr(resources.StoresResource, "open", open_stores)
    monkeypatch.setattr(resources.BusResource, "unread_letters", lambda _: stored.unread)
    return stored


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of a running stack out of these tests."""
    for name in [name for name in os.environ if name.startswith("MARKET_PIPELINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MARKET_PIPELINE_HOME", str(tmp_path))


@pytest.fixture(scope="session")
def instruments() -> Instruments:
    return parse_instruments(INSTRUMENTS, "the test's instruments")


@pytest.fixture(scope="session")
def partitions(instruments: Instruments) -> BarPartitions:
    return bar_partitions(instruments)


@pytest.fixture(scope="session")
def defs(instruments: Instruments) -> dg.Definitions:
    return build_definitions(instruments)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance

"""The doors of history/ for orchestration, CLI and tests: plain functions that run one job from start to end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from market_pipeline.errors import HistoryError, RangeNotLoaded
from market_pipeline.history.aggregate import aggregate_symbol
from market_pipeline.history.derive import derive_symbol
from market_pipeline.history.load import load_symbol
from market_pipeline.history.monitor import monitor_symbol
from market_pipeline.history.progress import Meter, Progress
from market_pipeline.history.reconcile import fetch_symbol, judge, live_spans, settled_until
from market_pipeline.history.repair import repair_symbol
from market_pipeline.history.reports import (
    AggregateReport,
    DeriveReport,
    LoadReport,
    MonitorReport,
    ReconcileReport,
    RepairReport,
    SymbolAggregate,
    SymbolLoad,
)
from market_pipeline.history.runtime import Clock, Runtime, open_runtime, utc_now
from market_pipeline.history.wanted import Interval, Wanted, minutes_of, resolve
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import DERIVED, timeframe
from market_pipeline.settings import Settings
from market_pipeline.stores.ticks import TickReader
from market_pipeline.stores.vendor_requests import merged
from market_pipeline.tasks import end_tasks

Report = Callable[[Progress], None]


def load_minutes(
    settings: Settings,
    wanted: Wanted,
    *,
    run_id: str,
    root_run_id: str,
    progress: Report | None = None,
    clock: Clock = utc_now,
) -> LoadReport:
    """Load the minutes of UTC days from the vendor, verified in the store before it returns.

    `root_run_id` is the run that a retry goes back to: what a run of the same root has landed is not asked for again.

    Raises:
        UnknownSymbol, BadRange: the request cannot be.
        SettingsError, VendorAuthError, BusAuthError, StoreAuthError: terminal, before anything was asked for.
        RangeNotLoaded: with every missing range; all others have landed.
    """

    async def run() -> LoadReport:
        report = LoadReport()
        async with _at_work(settings, report, run_id=run_id, root_run_id=root_run_id, clock=clock) as rt:
            assert rt.vendor is not None
            todo = resolve(wanted, rt.instruments, clock())
            meter = Meter("loading", sum(minutes_of(spans) for _, spans in todo.values()), progress)
            report.symbols = {key: SymbolLoad(key) for key in todo}
            await _each(
                [
                    lambda i=instrument, s=spans, r=report.symbols[key]: load_symbol(rt, i, s, r, meter)  # type: ignore[misc]
                    for key, (instrument, spans) in todo.items()
                ],
                settings.history.symbols_at_once,
            )
            report.retries = dict(rt.vendor.stats.retries)
            report.seconds_throttled = rt.tracker.seconds_throttled
            report.latency_ms = await asyncio.to_thread(rt.ingest.latency, run_id)
        return report

    return asyncio.run(run())


def derive_bars(
    settings: Settings,
    wanted: Wanted,
    timeframes: Sequence[str] = DERIVED,
    *,
    run_id: str,
    progress: Report | None = None,
    clock: Clock = utc_now,
) -> DeriveReport:
    """Derive every window of the timeframes that the days touch from the winning minutes, verified in the store.

    Raises:
        UnknownTimeframe, UnknownSymbol, BadRange: the request cannot be.
        HistoryError, VerificationFailed: something is not in the store.
    """
    wrong = [code for code in timeframes if timeframe(code).code not in DERIVED]
    if wrong:
        raise HistoryError(f"{', '.join(wrong)} cannot be derived from minutes: one of {', '.join(DERIVED)}")

    async def run() -> DeriveReport:
        report = DeriveReport()
        async with _at_work(settings, report, run_id=run_id, root_run_id=run_id, vendor=False, clock=clock) as rt:
            todo = resolve(wanted, rt.instruments, clock())
            meter = Meter("deriving", sum(minutes_of(spans) for _, spans in todo.values()), progress)
            await _each(
                [
                    lambda i=instrument, s=spans: derive_symbol(rt, i, s, timeframes, report, meter)  # type: ignore[misc]
                    for instrument, spans in todo.values()
                ],
                settings.history.symbols_at_once,
            )
        return report

    return asyncio.run(run())


def repair_gaps(
    settings: Settings,
    *,
    symbols: Sequence[str] | None = None,
    retry_given_up: bool = False,
    run_id: str,
    root_run_id: str,
    progress: Report | None = None,
    clock: Clock = utc_now,
) -> RepairReport:
    """Repair every open gap of the symbols (default: all): in what was ever asked for, and what the ledger holds.

    What the vendor's plan does not include, and what failed too often, is given up: it is asked for again only with
    `retry_given_up`.

    Raises:
        UnknownSymbol: a symbol is not among the instruments.
        RangeNotLoaded: gaps that the vendor could not be asked about; all others were asked for.
        VendorAuthError: the vendor does not know the key.
    """

    async def run() -> RepairReport:
        report = RepairReport()
        async with _at_work(settings, report, run_id=run_id, root_run_id=root_run_id, clock=clock) as rt:
            assert rt.vendor is not None
            chosen = _chosen(rt, symbols)
            meter = Meter("repairing", 0, progress)
            await _each(
                [lambda i=i: repair_symbol(rt, i, report, meter, retry_given_up=retry_given_up) for i in chosen],  # type: ignore[misc]
                settings.history.symbols_at_once,
            )
            report.table = await asyncio.to_thread(rt.gaps.table, [i.key for i in chosen])
            report.load.retries = dict(rt.vendor.stats.retries)
        return report

    return asyncio.run(run())


def reconcile_live(
    settings: Settings,
    wanted: Wanted,
    *,
    run_id: str,
    root_run_id: str,
    progress: Report | None = None,
    clock: Clock = utc_now,
) -> ReconcileReport:
    """Load the vendor's minutes of live time beside the live ones, and compare the two.

    Of the days, only what lies between a symbol's first and last live minute and is settled; a symbol without a live
    minute is not asked for, and has no counts.

    Raises:
        UnknownSymbol, BadRange: the request cannot be.
        RangeNotLoaded: with every range of the vendor's that is missing; nothing was compared.
    """

    async def run() -> ReconcileReport:
        report = ReconcileReport()
        async with _at_work(settings, report, run_id=run_id, root_run_id=root_run_id, clock=clock) as rt:
            assert rt.vendor is not None
            todo = resolve(wanted, rt.instruments, clock())
            scope = {key: spans for key, (_, spans) in todo.items()}
            live = await asyncio.to_thread(live_spans, rt.bars, scope, settled_until(settings, clock()))
            meter = Meter("reconciling", sum(minutes_of(spans) for spans in live.values()), progress)
            await _each(
                [
                    lambda i=todo[key][0], s=spans: fetch_symbol(rt, i, s, report, meter)  # type: ignore[misc]
                    for key, spans in live.items()
                ],
                settings.history.symbols_at_once,
            )
            await judge(rt, live, report)
            report.load.retries = dict(rt.vendor.stats.retries)
        return report

    return asyncio.run(run())


def monitor_gaps(
    settings: Settings,
    *,
    symbols: Sequence[str] | None = None,
    whole: bool = False,
    run_id: str,
    progress: Report | None = None,
    clock: Clock = utc_now,
) -> MonitorReport:
    """Bring the gap ledger of the symbols (default: all) into agreement with their history; ask for nothing.

    `whole`: from the first minute on without a break, though stretches in between were never asked for.

    Raises:
        UnknownSymbol: a symbol is not among the instruments.
    """

    async def run() -> MonitorReport:
        report = MonitorReport()
        async with _at_work(settings, report, run_id=run_id, root_run_id=run_id, vendor=False, clock=clock) as rt:
            chosen = _chosen(rt, symbols)
            meter = Meter("monitoring", 0, progress)
            await _each(
                [lambda i=i: monitor_symbol(rt, i, report, meter, whole=whole) for i in chosen],  # type: ignore[misc]
                settings.history.symbols_at_once,
            )
        return report

    return asyncio.run(run())


def aggregate_ticks(
    settings: Settings,
    wanted: Wanted,
    *,
    run_id: str,
    progress: Report | None = None,
    clock: Clock = utc_now,
) -> AggregateReport:
    """Make minutes of the ticks stored for UTC days, as `historical_aggregated`, and derive what they touch.

    Both are verified in the store before it returns. A minute is complete only where that is proven: see `aggregate`.

    Raises:
        UnknownSymbol, BadRange: the request cannot be.
        StoreError: the tick store or ClickHouse; the tick store was never started.
        HistoryError, VerificationFailed: something is not in the store.
    """

    async def run() -> AggregateReport:
        report = AggregateReport()
        async with _at_work(settings, report, run_id=run_id, root_run_id=run_id, vendor=False, clock=clock) as rt:
            todo = resolve(wanted, rt.instruments, clock())
            meter = Meter("aggregating", sum(minutes_of(spans) for _, spans in todo.values()), progress)

            async def one(reader: TickReader, instrument: Instrument, spans: Sequence[Interval]) -> None:
                part = report.symbols[instrument.key] = SymbolAggregate(instrument.key)
                made = merged(await aggregate_symbol(rt, reader, instrument, spans, part, meter))
                # All of them, changed or not: a run that died before it derived them may have changed them.
                await derive_symbol(rt, instrument, made, DERIVED, report.derived, Meter("deriving", 0, None))

            with TickReader(settings.postgres) as reader:
                await _each(
                    [lambda i=i, s=s: one(reader, i, s) for i, s in todo.values()],  # type: ignore[misc]
                    settings.history.symbols_at_once,
                )
        return report

    return asyncio.run(run())


def probe_all(settings: Settings) -> dict[str, float]:
    """Prove that vendor, NATS and ClickHouse do their work; return the milliseconds that each took.

    Raises:
        The typed error of the part that does not.
    """

    async def run() -> dict[str, float]:
        async with open_runtime(settings, run_id="probe", root_run_id="probe") as rt:
            return rt.probes_ms

    return asyncio.run(run())


@asynccontextmanager
async def _at_work(
    settings: Settings,
    report: AggregateReport | DeriveReport | LoadReport | MonitorReport | ReconcileReport | RepairReport,
    *,
    run_id: str,
    root_run_id: str,
    vendor: bool = True,
    clock: Clock,
) -> AsyncIterator[Runtime]:
    """Give a runtime to work in, and write into the report how long the work took, once it has succeeded."""
    started = time.monotonic()
    async with open_runtime(settings, run_id=run_id, root_run_id=root_run_id, vendor=vendor, clock=clock) as rt:
        yield rt
        report.seconds = time.monotonic() - started


def _chosen(rt: Runtime, symbols: Sequence[str] | None) -> list[Instrument]:
    return [rt.instruments.get(s) for s in symbols] if symbols else list(rt.instruments)


async def _each(jobs: Sequence[Callable[[], Awaitable[None]]], at_once: int) -> None:
    """Run the jobs, a few at once. Ranges that could not be loaded are gathered; any other error ends all at once.

    Raises:
        RangeNotLoaded: one for all symbols, when any failed with it.
    """
    slots = asyncio.Semaphore(at_once)

    async def one(job: Callable[[], Awaitable[None]]) -> None:
        async with slots:
            await job()

    failures: list[RangeNotLoaded] = []
    tasks = [asyncio.create_task(one(job)) for job in jobs]
    try:
        for task in asyncio.as_completed(tasks):
            try:
                await task
            except RangeNotLoaded as error:
                failures.append(error)
    finally:
        await end_tasks(tasks)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise RangeNotLoaded(
            "; ".join(str(f) for f in failures), [missing for failure in failures for missing in failure.missing]
        )

"""The job `repair_gaps`, and how what it mended appears on the assets."""
# no `from __future__ import annotations`: Dagster reads the annotations of ops

import time
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl
from pydantic import Field

from market_pipeline.market.instruments import Instruments
from market_pipeline.orchestration.assets.derived import DAILY_DERIVED, WEEKLY, bars_key
from market_pipeline.orchestration.assets.minutes import MINUTES, POOL
from market_pipeline.orchestration.checks.definitions import AGREEMENT, GAPS
from market_pipeline.orchestration.checks.evaluate import evaluate_agreement, evaluate_gaps
from market_pipeline.orchestration.event_metadata import Metadata, derived_metadata, frame_table, minutes_metadata
from market_pipeline.orchestration.failures import readable_failures
from market_pipeline.orchestration.jobs import CRASH_RETRY, REPAIR_GAPS
from market_pipeline.orchestration.partitions import BarPartitions, materialization, partition_key, sunday_of
from market_pipeline.orchestration.progress import log_progress
from market_pipeline.orchestration.resources import BusResource, StoresResource, VendorResource, platform_settings
from market_pipeline.orchestration.run_identity import root_run_id
from market_pipeline.orchestration.run_log import service_log
from market_pipeline.orchestration.wanted import ranges_of
from market_pipeline.orchestration.whole_days import of_whole_days
from market_pipeline.settings import HistorySettings

if TYPE_CHECKING:
    from market_pipeline.history.reports import RepairReport
    from market_pipeline.stores import Stores

MOST_EVENTS = 500
"""An event costs about 20 ms: a repair of months is recorded as one observation an asset instead."""


class RepairConfig(dg.Config):
    """What a repair looks at."""

    symbols: list[str] = Field(
        default_factory=list, description="Symbols in any form (EUR/USD, EURUSD, C:EURUSD); none: every instrument"
    )
    retry_given_up: bool = Field(
        default=False,
        description=(
            "Ask again for gaps that were given up: the plan did not include them, or their requests failed too often"
        ),
    )


def build_repair_job(partitions: BarPartitions) -> dg.JobDefinition:
    """Build the job that asks the vendor for every missing minute and derives again what they touch."""

    @dg.op(
        pool=POOL,
        description="Scans what was ever asked for, asks again for what is missing, derives again, checks the gaps.",
    )
    def repair(
        context: dg.OpExecutionContext,
        config: RepairConfig,
        vendor: VendorResource,
        bus: BusResource,
        stores: StoresResource,
    ) -> None:
        from market_pipeline import history

        settings = platform_settings(vendor, bus, stores)
        started = time.time_ns()
        with readable_failures(), service_log(context.log):
            report = history.repair_gaps(
                settings,
                symbols=config.symbols or None,
                retry_given_up=config.retry_given_up,
                run_id=context.run_id,
                root_run_id=root_run_id(context.run),
                progress=log_progress(context.log),
            )
            context.log.info(
                f"{report.found_minutes:,} minutes in {report.found_gaps:,} gaps: {report.repaired_minutes:,} "
                f"repaired, {report.confirmed_minutes:,} confirmed as missing at the vendor, "
                f"{report.given_up_minutes:,} given up, "
                f"{report.still_open_minutes:,} still open, after {report.asked_requests:,} requests"
            )
            with stores.open() as opened:
                repaired = opened.gaps.table(partitions.instruments.keys, states=("repaired",))
                changed = repaired_days(repaired, started)
                for event in repair_events(report, changed, partitions, settings.history, opened):
                    context.log_event(event)
                for evaluation in _evaluations(opened, changed, partitions, settings.history):
                    # log_event takes evaluations too; its annotation does not say so
                    context.log_event(evaluation)  # type: ignore[arg-type]
        context.add_output_metadata(_summary(report))

    @dg.job(
        name=REPAIR_GAPS,
        description=(
            "Finds expected minutes that are missing in all that was ever asked for, asks the vendor for them, derives "
            "again every window that they touch, up to the week, and evaluates the check *gaps*. A minute that the "
            "vendor does not have is confirmed by further requests and then no longer asked for, nor is "
            "one that the plan does not include or whose requests fail too often: it is given up, and asked for again "
            "only with *retry_given_up*."
        ),
        tags=CRASH_RETRY,
    )
    def repair_gaps() -> None:
        repair()

    return repair_gaps


def repaired_days(repaired: pl.DataFrame, since_ns: int) -> dict[str, list[date]]:
    """Return the UTC days, by symbol key, of gaps that were written as repaired since `since_ns` (epoch ns).

    `repaired`: the ledger's table of repaired gaps.
    """
    days: dict[str, set[date]] = {}
    new = repaired.filter(pl.col("version") >= since_ns).select("symbol", "start_ts", "end_ts")
    for symbol, start, end in new.iter_rows():
        last = (end - timedelta(minutes=1)).date()
        some = days.setdefault(symbol, set())
        some.update(start.date() + timedelta(days=n) for n in range((last - start.date()).days + 1))
    return {symbol: sorted(some) for symbol, some in days.items()}


def repair_events(
    report: "RepairReport",
    changed: dict[str, list[date]],
    partitions: BarPartitions,
    settings: HistorySettings,
    stores: "Stores",
) -> list[dg.AssetMaterialization | dg.AssetObservation]:
    """Return a materialization for each partition that the repair changed, or observations when they are many.

    `changed`: the days by symbol key that got minutes which were missing.
    """
    instruments = partitions.instruments
    daily = [partition_key(day, partition) for day, partition in _by_partition(changed, instruments)]
    weeks = {symbol: sorted({sunday_of(day) for day in days}) for symbol, days in changed.items()}
    weekly = [partition_key(day, partition) for day, partition in _by_partition(weeks, instruments)]
    assets = [MINUTES, *(bars_key(code) for code in (*DAILY_DERIVED, WEEKLY))]
    if not daily:
        return []
    if len(daily) * (1 + len(DAILY_DERIVED)) + len(weekly) > MOST_EVENTS:
        table = pl.DataFrame(
            {"symbol": list(changed), "days": [len(days) for days in changed.values()]},
            schema={"symbol": pl.String, "days": pl.Int64},
        )
        return [dg.AssetObservation(asset, metadata={"repaired": frame_table(table)}) for asset in assets]
    by, now = {"by": REPAIR_GAPS}, datetime.now(UTC)
    report = of_whole_days(report, changed, stores, instruments, settings, now)
    events: list[dg.AssetMaterialization | dg.AssetObservation] = []
    for key, metadata in minutes_metadata(daily, report.load, instruments).items():
        events.append(materialization(MINUTES, key, {**metadata, **by}))
    for code in (*DAILY_DERIVED, WEEKLY):
        keys = weekly if code == WEEKLY else daily
        for key, metadata in derived_metadata(
            keys, code, report.derived, instruments, now=now, settle=settings.settle
        ).items():
            events.append(materialization(bars_key(code), key, {**metadata, **by}))
    return events


def _evaluations(
    stores: "Stores", changed: dict[str, list[date]], partitions: BarPartitions, settings: HistorySettings
) -> list[dg.AssetCheckEvaluation]:
    """Judge the gaps of everything, and the agreement of what was derived again."""
    now = datetime.now(UTC)
    gaps = evaluate_gaps(stores, partitions.instruments, settings, now, None)
    evaluations = [gaps.evaluation(MINUTES, GAPS)]
    if changed:
        days = {symbol: ranges_of(some) for symbol, some in changed.items()}
        codes = (*DAILY_DERIVED, WEEKLY)
        verdicts = evaluate_agreement(stores, codes, days, sampled=False, settings=settings, now=now)
        evaluations += [verdict.evaluation(bars_key(code), AGREEMENT) for code, verdict in verdicts.items()]
    return evaluations


def _by_partition(days: dict[str, list[date]], instruments: Instruments) -> list[tuple[date, str]]:
    return sorted({(day, instruments.get(symbol).partition) for symbol, some in days.items() for day in some})


def _summary(report: "RepairReport") -> Metadata:
    metadata: Metadata = {
        "gaps found": report.found_gaps,
        "minutes found": report.found_minutes,
        "minutes repaired": report.repaired_minutes,
        "minutes confirmed as missing": report.confirmed_minutes,
        "minutes given up": report.given_up_minutes,
        "minutes still open": report.still_open_minutes,
        "vendor requests": report.asked_requests,
        "seconds": round(report.seconds, 3),
    }
    if report.table.height:
        metadata["gaps"] = frame_table(report.table)
    return metadata

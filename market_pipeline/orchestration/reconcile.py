"""The job `reconcile_live`, and the schedule that launches it while there are live minutes."""
# no `from __future__ import annotations`: Dagster reads the annotations of ops

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from market_pipeline.errors import BadRange, MarketPipelineError
from market_pipeline.market.bars import LIVE_AGGREGATED
from market_pipeline.market.instruments import Instruments
from market_pipeline.market.timeframes import midnight
from market_pipeline.orchestration.assets.minutes import MINUTES, POOL
from market_pipeline.orchestration.checks.definitions import LIVE_AGREEMENT
from market_pipeline.orchestration.checks.live_rules import judge_live
from market_pipeline.orchestration.checks.scope import last_days, run_days
from market_pipeline.orchestration.event_metadata import Metadata, frame_table
from market_pipeline.orchestration.failures import readable_failures
from market_pipeline.orchestration.jobs import CRASH_RETRY, RECONCILE_LIVE
from market_pipeline.orchestration.partitions import BarPartitions
from market_pipeline.orchestration.progress import log_progress
from market_pipeline.orchestration.resources import BusResource, StoresResource, VendorResource, platform_settings
from market_pipeline.orchestration.run_identity import root_run_id
from market_pipeline.orchestration.run_log import service_log
from market_pipeline.orchestration.wanted import Wanted, describe

if TYPE_CHECKING:
    from market_pipeline.history.reports import ReconcileReport

LOOK_BACK = timedelta(days=2)
NOTHING_LIVE = "no live minute of the last two days is stored: there is nothing to reconcile"


class ReconcileConfig(dg.Config):
    """What is reconciled."""

    symbols: list[str] = Field(
        default_factory=list, description="Symbols in any form (EUR/USD, EURUSD, C:EURUSD); none: every instrument"
    )
    first_day: str = Field(default="", description="First UTC day, YYYY-MM-DD; empty: yesterday")
    last_day: str = Field(default="", description="Last UTC day, YYYY-MM-DD; empty: today")


def build_reconcile_job(partitions: BarPartitions) -> dg.JobDefinition:
    """Build the job that asks for the vendor's minutes of live time and compares them with the live ones."""

    @dg.op(
        pool=POOL,
        description="Loads the vendor's settled minutes of live time beside the live ones, and compares the two.",
    )
    def reconcile(
        context: dg.OpExecutionContext,
        config: ReconcileConfig,
        vendor: VendorResource,
        bus: BusResource,
        stores: StoresResource,
    ) -> None:
        from market_pipeline import history

        with readable_failures(), service_log(context.log):
            wanted = _wanted(context.run, config, partitions)
            context.log.info(f"reconciling {describe(wanted)}")
            report = history.reconcile_live(
                platform_settings(vendor, bus, stores),
                wanted,
                run_id=context.run_id,
                root_run_id=root_run_id(context.run),
                progress=log_progress(context.log),
            )
        verdict = judge_live(report.counts, report.differing, report.values, report.winner)
        context.log.info(verdict.sentence)
        # log_event takes evaluations too; its annotation does not say so
        context.log_event(verdict.evaluation(MINUTES, LIVE_AGREEMENT))  # type: ignore[arg-type]
        context.add_output_metadata(_summary(report))

    @dg.job(
        name=RECONCILE_LIVE,
        description=(
            "Asks the vendor for the settled minutes of the time in which live minutes were made, stores them beside "
            "the live ones, and compares the two: the check *live_agreement* of bars_1m has the result. Which of the "
            "two wins is the setting `history.precedence`, and does not change by this.\n\n"
            "Yesterday and today unless the configuration, or the tags of a range of partitions, name other days."
        ),
        tags=CRASH_RETRY,
    )
    def reconcile_live() -> None:
        reconcile()

    return reconcile_live


def reconcile_schedule(partitions: BarPartitions) -> dg.ScheduleDefinition:
    """Build the hourly schedule; it is on, costs a query an hour, and rests while nothing is live."""

    @dg.schedule(
        name="hourly_reconcile_live",
        job_name=RECONCILE_LIVE,
        cron_schedule="50 * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Compares the live minutes of the last two days with the vendor's, once these have settled.",
    )
    def hourly_reconcile_live(
        context: dg.ScheduleEvaluationContext, stores: StoresResource
    ) -> dg.RunRequest | dg.SkipReason:
        now = context.scheduled_execution_time.astimezone(UTC)
        try:
            with stores.open() as opened:
                live = opened.bars.source_spans(
                    partitions.instruments.keys, "1m", LIVE_AGGREGATED, midnight(now.date()) - LOOK_BACK, now
                )
        except MarketPipelineError as error:
            return dg.SkipReason(f"the store cannot be asked for live minutes: {error}")
        if live.height == 0:
            return dg.SkipReason(NOTHING_LIVE)
        return dg.RunRequest(run_key=f"{now:%Y-%m-%dT%H}")

    return hourly_reconcile_live


def _wanted(run: dg.DagsterRun, config: ReconcileConfig, partitions: BarPartitions) -> Wanted:
    """Return the days of the run's partitions, else of its configuration, else yesterday and today."""
    instruments, today = partitions.instruments, datetime.now(UTC).date()
    days = run_days(run, partitions)
    if days is None:
        days = _configured(config, instruments, today)
    if config.symbols:
        keys = {instruments.get(symbol).key for symbol in config.symbols}
        days = {symbol: ranges for symbol, ranges in days.items() if symbol in keys}
    return days


def _configured(config: ReconcileConfig, instruments: Instruments, today: date) -> Wanted:
    if not (config.first_day or config.last_day):
        return last_days(instruments, today)
    last = _day(config.last_day, today)
    first = _day(config.first_day, last - timedelta(days=1))
    if first > last or last > today:
        raise BadRange(f"{first} to {last}: the first day must not lie after the last, nor the last after {today} UTC")
    return {
        instrument.key: [(max(first, instrument.history_start), last + timedelta(days=1))]
        for instrument in instruments
        if instrument.history_start <= last
    }


def _day(text: str, default: date) -> date:
    try:
        return date.fromisoformat(text) if text else default
    except ValueError:
        raise BadRange(f"{text!r} is no day: write it as 2024-03-01") from None


def _summary(report: "ReconcileReport") -> Metadata:
    total = report.total
    metadata: Metadata = {
        "minutes compared": total.compared,
        "minutes that differ": total.differ,
        "minutes only live": total.only_live,
        "minutes only vendor": total.only_vendor,
        "minutes incomplete live": total.live_incomplete,
        "wins": report.winner,
        "vendor minutes written": report.load.counts.written,
        "vendor requests": sum(load.requests for load in report.load.symbols.values()),
        "seconds": round(report.seconds, 3),
    }
    if report.differing.height:
        metadata["values that differ"] = frame_table(report.differing)
    return metadata

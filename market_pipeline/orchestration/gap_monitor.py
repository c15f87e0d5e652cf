"""The job `monitor_gaps` and its daily schedule: what is missing in all of history, for the repair to work on."""
# no `from __future__ import annotations`: Dagster reads the annotations of ops

import dagster as dg
from pydantic import Field

from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.event_metadata import frame_table
from market_pipeline.orchestration.failures import readable_failures
from market_pipeline.orchestration.jobs import CRASH_RETRY, MONITOR_GAPS
from market_pipeline.orchestration.loaded import request_if_loaded
from market_pipeline.orchestration.progress import log_progress
from market_pipeline.orchestration.resources import BusResource, StoresResource, platform_settings
from market_pipeline.orchestration.run_log import service_log


class MonitorConfig(dg.Config):
    """What is looked at."""

    symbols: list[str] = Field(
        default_factory=list, description="Symbols in any form (EUR/USD, EURUSD, C:EURUSD); none: every instrument"
    )
    whole: bool = Field(
        default=False,
        description=(
            "From each symbol's first minute on without a break: years between two loads, which nobody has asked for, "
            "are then gaps, and the hourly repair loads them"
        ),
    )


def build_monitor_job() -> dg.JobDefinition:
    """Build the job that brings the gap ledger into agreement with all of history."""

    @dg.op(description="Compares every symbol's history with its calendar and writes what is missing to the ledger.")
    def monitor(
        context: dg.OpExecutionContext, config: MonitorConfig, bus: BusResource, stores: StoresResource
    ) -> None:
        from market_pipeline import history

        with readable_failures(), service_log(context.log):
            report = history.monitor_gaps(
                platform_settings(bus, stores),
                symbols=config.symbols or None,
                whole=config.whole,
                run_id=context.run_id,
                progress=log_progress(context.log),
            )
        table = report.table
        for row in table.iter_rows(named=True):
            context.log.info(
                f"{row['symbol']}: {row['missing']:,} of {row['expected']:,} minutes missing since "
                f"{row['start']:%Y-%m-%d}: {row['open']:,} to ask for, {row['confirmed']:,} the vendor does not have"
                + (f", {row['given_up']:,} given up" if row["given_up"] else "")
            )
        context.add_output_metadata(
            {
                "symbols": table.height,
                "minutes expected": int(table["expected"].sum()),
                "minutes missing": int(table["missing"].sum()),
                "minutes to ask for": int(table["open"].sum()),
                "minutes confirmed as missing": int(table["confirmed"].sum()),
                "minutes given up": int(table["given_up"].sum()),
                "seconds": round(report.seconds, 3),
                "by symbol": frame_table(table),
            }
        )

    @dg.job(
        name=MONITOR_GAPS,
        description=(
            "Looks at the whole history of every symbol that has a bar, streamed ones too, and writes each expected "
            "minute without a complete bar to the gap ledger. It asks the vendor for nothing: *repair_gaps* does."
        ),
        tags=CRASH_RETRY,
    )
    def monitor_gaps() -> None:
        monitor()

    return monitor_gaps


def daily_gap_monitor() -> dg.ScheduleDefinition:
    """Return the schedule: after the nightly load, and before an hourly repair, which works on what is found."""

    @dg.schedule(
        name="daily_gap_monitor",
        job_name=MONITOR_GAPS,
        cron_schedule="10 3 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Compares all of history with the calendars, for the hourly repair to ask for what is missing.",
    )
    def daily_gap_monitor(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return request_if_loaded(context, MINUTES, run_key="%Y-%m-%d", otherwise="there can be no gap")

    return daily_gap_monitor

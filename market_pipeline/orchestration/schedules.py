"""The schedules: history every night, gap repair every hour. On an empty install both skip, and say why."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from itertools import groupby

import dagster as dg

from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.jobs import LOAD_HISTORY, REPAIR_GAPS, range_tags
from market_pipeline.orchestration.loaded import FOLLOWED_DAYS, last_loaded_days, request_if_loaded
from market_pipeline.orchestration.partitions import BarPartitions, partition_key

NOTHING_LOADED = (
    f"no day of the last {FOLLOWED_DAYS} was ever loaded: materialize bars_1m of some recent days once, and those "
    "symbols are kept up to date from then on"
)


def build_schedules(partitions: BarPartitions) -> list[dg.ScheduleDefinition]:
    """Build the nightly and the hourly schedule, both running by default."""
    return [_nightly(partitions), _hourly(partitions)]


def _nightly(partitions: BarPartitions) -> dg.ScheduleDefinition:
    @dg.schedule(
        name="nightly_history",
        job_name=LOAD_HISTORY,
        cron_schedule="20 0 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            "After midnight UTC and settle: loads the last two days of every followed symbol again, and what was "
            f"missed while nothing ran (up to {FOLLOWED_DAYS} days), and derives what they touch."
        ),
    )
    def nightly_history(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        today = context.scheduled_execution_time.date()
        newest = last_loaded_days(context.instance, MINUTES, partitions, today)
        if not newest:
            yield dg.SkipReason(NOTHING_LOADED)
            return
        for first, last, start in nightly_ranges(partitions, newest, today):
            end = today - timedelta(days=1)
            yield dg.RunRequest(
                run_key=f"{today}:{first}-{last}",
                tags=range_tags(partition_key(start, first), partition_key(end, last)),
            )

    return nightly_history


def _hourly(partitions: BarPartitions) -> dg.ScheduleDefinition:
    @dg.schedule(
        name="hourly_gap_repair",
        job_name=REPAIR_GAPS,
        cron_schedule="35 * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Asks the vendor again for minutes that are missing, until it has confirmed that there are none.",
    )
    def hourly_gap_repair(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return request_if_loaded(context, MINUTES, run_key="%Y-%m-%dT%H", otherwise="there can be no gap")

    return hourly_gap_repair


def nightly_ranges(partitions: BarPartitions, newest: dict[str, date], today: date) -> list[tuple[str, str, date]]:
    """Return (first partition, last partition, first day) of the runs of a night.

    A range of partition keys spans neighbours in the instruments' order, so that followed neighbours with the same
    first day share a run. The first day is the day before yesterday, or the newest loaded one where that is older.
    """
    usual = today - timedelta(days=2)

    def start_of(partition: str) -> date | None:
        return min(usual, newest[partition]) if partition in newest else None

    ranges: list[tuple[str, str, date]] = []
    for start, group in groupby(partitions.instruments.partitions, key=start_of):
        members = list(group)
        if start is not None:
            ranges.append((members[0], members[-1], start))
    return ranges

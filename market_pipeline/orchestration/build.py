"""The whole code location as a function of the instruments."""

from __future__ import annotations

import warnings

import dagster as dg

from market_pipeline.market.instruments import Instruments
from market_pipeline.orchestration.assets.derived import build_derived
from market_pipeline.orchestration.assets.minutes import build_minutes, vendor_minutes
from market_pipeline.orchestration.assets.restatements import (
    build_restatements,
    daily_restatements,
    report_restatements,
)
from market_pipeline.orchestration.assets.ticks import market_ticks, vendor_stream
from market_pipeline.orchestration.checks.definitions import build_checks
from market_pipeline.orchestration.dead_letters import build_replay_job
from market_pipeline.orchestration.gap_monitor import build_monitor_job, daily_gap_monitor
from market_pipeline.orchestration.jobs import check_bars, load_history, probe_services
from market_pipeline.orchestration.live.job import build_live_job
from market_pipeline.orchestration.live.sensor import keep_live_sensor
from market_pipeline.orchestration.partitions import BarPartitions, bar_partitions
from market_pipeline.orchestration.reconcile import build_reconcile_job, reconcile_schedule
from market_pipeline.orchestration.repair import build_repair_job
from market_pipeline.orchestration.resources import default_resources
from market_pipeline.orchestration.schedules import build_schedules
from market_pipeline.orchestration.sensors import freshness_sensor
from market_pipeline.orchestration.tick_aggregation import build_aggregate_job


def build_definitions(instruments: Instruments) -> dg.Definitions:
    """Build assets, checks, jobs, schedules, sensors and resources for these instruments; no server is asked."""
    with warnings.catch_warnings():
        # BackfillPolicy is beta and says so for every asset; what we rely on is pinned and tested
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _build(bar_partitions(instruments))


def _build(partitions: BarPartitions) -> dg.Definitions:
    return dg.Definitions(
        assets=[
            vendor_minutes(),
            vendor_stream(),
            market_ticks(partitions),
            build_minutes(partitions),
            *build_derived(partitions),
            build_restatements(),
        ],
        asset_checks=build_checks(partitions),
        jobs=[
            load_history(),
            build_repair_job(partitions),
            build_monitor_job(),
            build_aggregate_job(),
            build_live_job(partitions),
            build_reconcile_job(partitions),
            build_replay_job(),
            report_restatements(),
            check_bars(),
            probe_services(),
        ],
        schedules=[
            *build_schedules(partitions),
            daily_gap_monitor(),
            reconcile_schedule(partitions),
            daily_restatements(),
        ],
        sensors=[freshness_sensor(partitions), keep_live_sensor()],
        resources=default_resources(),
        # steps wait on servers, not on a processor: a process for each would cost seconds and a hundred megabytes
        executor=dg.in_process_executor,
    )

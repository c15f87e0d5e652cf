"""The jobs: load history over a range, repair gaps, prove that the services answer."""
# no `from __future__ import annotations`: Dagster reads the annotations of what it calls

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from market_pipeline.orchestration.assets.derived import DAILY_DERIVED, bars_key
from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.failures import readable_failures
from market_pipeline.orchestration.resources import BusResource, StoresResource, VendorResource

LOAD_HISTORY, REPAIR_GAPS, CHECK_BARS, PROBE_SERVICES = "load_history", "repair_gaps", "check_bars", "probe_services"
RECONCILE_LIVE, REPLAY_DEAD_LETTERS = "reconcile_live", "replay_dead_letters"
MONITOR_GAPS, AGGREGATE_TICKS = "monitor_gaps", "aggregate_ticks"

CRASH_RETRY = {"dagster/max_retries": "1"}
"""A run whose process died goes on from its checkpoint once; a step that failed has had its retries inside."""


def range_tags(start: str, end: str) -> dict[str, str]:
    """Return the tags that make a run of a partitioned job cover the keys `start` to `end`, both included."""
    return {ASSET_PARTITION_RANGE_START_TAG: str(start), ASSET_PARTITION_RANGE_END_TAG: str(end)}


def load_history() -> UnresolvedAssetJobDefinition:
    """Return the job that loads minutes and derives every timeframe of the same days in one run."""
    return dg.define_asset_job(
        LOAD_HISTORY,
        selection=dg.AssetSelection.assets(MINUTES, *(bars_key(code) for code in DAILY_DERIVED)),
        description=(
            "Loads minutes from the vendor for a range of days and symbols and derives every timeframe of them, the "
            "weeks they touch included, in one run.\n\nIn the UI choose *Materialize* and a range of partitions. "
            "From a terminal: `dagster job launch -w workspace.yaml -j load_history --tags "
            '\'{"dagster/asset_partition_range_start": "2024-03-01|EURUSD", '
            '"dagster/asset_partition_range_end": "2024-03-05|EURUSD"}\'`.'
        ),
        tags=CRASH_RETRY,
    )


def check_bars() -> UnresolvedAssetJobDefinition:
    """Return the job that evaluates every check over all that was ever loaded."""
    return dg.define_asset_job(
        CHECK_BARS,
        selection=dg.AssetSelection.all_asset_checks(),
        description="Evaluates every check of every timeframe, over all that was ever asked for, and loads nothing.",
    )


def probe_services() -> dg.JobDefinition:
    """Return the job that lets vendor, bus and store each do a small piece of work."""

    @dg.op
    def probe(context: dg.OpExecutionContext, vendor: VendorResource, bus: BusResource, stores: StoresResource) -> None:
        with readable_failures():
            for name, part in (("ClickHouse", stores), ("NATS", bus), ("vendor", vendor)):
                milliseconds = part.probe()
                context.log.info(f"{name} answered in {milliseconds:.1f} ms")
                context.add_output_metadata({f"{name} (ms)": round(milliseconds, 1)})

    @dg.job(
        name=PROBE_SERVICES,
        description="Lets ClickHouse, NATS and the vendor each do a small piece of work, and says how long it took.",
    )
    def job() -> None:
        probe()

    return job

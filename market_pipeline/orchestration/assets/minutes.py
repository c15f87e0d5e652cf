"""`bars_1m`: minutes from the vendor, through the bus, into the store, verified."""
# no `from __future__ import annotations`: Dagster reads the annotations of what it calls

from datetime import UTC, datetime

import dagster as dg

from market_pipeline.orchestration.assets.ticks import TICKS
from market_pipeline.orchestration.columns import bar_metadata
from market_pipeline.orchestration.event_metadata import minutes_metadata
from market_pipeline.orchestration.failures import readable_failures
from market_pipeline.orchestration.partition_metadata import add_partition_metadata
from market_pipeline.orchestration.partitions import BarPartitions
from market_pipeline.orchestration.progress import log_progress
from market_pipeline.orchestration.resources import BusResource, StoresResource, VendorResource, platform_settings
from market_pipeline.orchestration.run_identity import asked_keys, root_run_id, shown_key
from market_pipeline.orchestration.run_log import service_log
from market_pipeline.orchestration.wanted import describe, wanted_days

POOL = "history"
"""Holds fewer runs than the queue lets run at once, so that a slot is always left for what is not history."""

VENDOR = dg.AssetKey("vendor_minutes")
MINUTES = dg.AssetKey("bars_1m")

_DESCRIPTION = """One-minute bars as the vendor gives them.

A run asks the vendor for its days **by range** (up to 50,000 minutes a request, within the plan's rate), publishes the
bars to NATS JetStream, stores them in ClickHouse through the bridge and **reads them back** before it reports success.

- Loading equal data again writes nothing; a restated bar replaces the old one, a withdrawn one is removed.
- A minute without a trade or quote has no bar: nothing is filled in. What the calendar expects and the store lacks is
  in the gap ledger, and the check *gaps* reports it.
- A run that fails names the ranges that are missing. *Re-execute* goes on from what has landed.
- Live minutes, made of `market_ticks` by the run of *live_ingestion*, lie beside the vendor's in the same table; the
  read view decides which of them wins.
- A day that is still running says `partial: true`; the nightly schedule loads it again when it is over.
"""


def vendor_minutes() -> dg.AssetSpec:
    """Return the vendor's own minutes as the graph's beginning; Dagster never materializes it."""
    return dg.AssetSpec(
        VENDOR,
        description="Minute aggregates of the market data vendor (REST). Not ours: shown as where the bars come from.",
        group_name="vendor",
        kinds={"json"},
    )


def build_minutes(partitions: BarPartitions) -> dg.AssetsDefinition:
    """Build `bars_1m` over date × symbol."""

    @dg.asset(
        key=MINUTES,
        deps=[VENDOR, TICKS],
        partitions_def=partitions.daily,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name="minutes",
        pool=POOL,
        kinds={"clickhouse", "nats", "polars"},
        tags={"timeframe": "1m"},
        metadata=bar_metadata("1m"),
        description=_DESCRIPTION,
    )
    def bars_1m(
        context: dg.AssetExecutionContext, vendor: VendorResource, bus: BusResource, stores: StoresResource
    ) -> dg.MaterializeResult:
        # its clients (NATS, ClickHouse, HTTP) take a second to import: a run waits for them, the UI must not
        from market_pipeline import history

        with readable_failures(), service_log(context.log):
            keys = asked_keys(context)
            wanted = wanted_days(keys, partitions.instruments, datetime.now(UTC).date())
            context.log.info(f"loading {describe(wanted)}")
            report = history.load_minutes(
                platform_settings(vendor, bus, stores),
                wanted,
                run_id=context.run.run_id,
                root_run_id=root_run_id(context.run),
                progress=log_progress(context.log),
            )
        add_partition_metadata(
            context, MINUTES, minutes_metadata(keys, report, partitions.instruments, shown=shown_key(context))
        )
        counts = report.counts
        context.log.info(
            f"loaded {counts.rows:,} rows in {report.seconds:.1f} s: {counts.new:,} new, {counts.restated:,} restated, "
            f"{counts.unchanged:,} unchanged, {counts.withdrawn:,} withdrawn, {counts.rejected:,} rejected"
        )
        return dg.MaterializeResult()

    return bars_1m

"""The job `live_ingestion`: the live services under Dagster's eyes."""
# no `from __future__ import annotations`: Dagster reads the annotations of ops

import time

import dagster as dg
from pydantic import Field

from market_pipeline.orchestration.failures import readable_failures
from market_pipeline.orchestration.live.log_relay import LogRelay
from market_pipeline.orchestration.live.report import LiveReporter
from market_pipeline.orchestration.live.watch import RunWatch
from market_pipeline.orchestration.partitions import BarPartitions
from market_pipeline.orchestration.resources import BusResource, StoresResource, VendorResource, platform_settings

LIVE_INGESTION = "live_ingestion"
LOOK_EVERY_S = 2.0
LIVE_TAGS = {"market_pipeline/live": "true", "dagster/max_retries": "0", "dagster/priority": "10"}
"""The first is limited to one run in dagster.yaml; the sensor, not a retry, starts the next one."""


class LiveConfig(dg.Config):
    """What a live run does."""

    services: list[str] = Field(
        default_factory=list,
        description="Services to run: collector, aggregator, ticks, bridge, repair, throttle; none: all of them",
    )
    seconds: float = Field(default=0.0, description="End by itself after so long; 0: run until it is ended", ge=0)


def build_live_job(partitions: BarPartitions) -> dg.JobDefinition:
    """Build the job. The run lasts for days: until it is terminated, its stack ends, or its status is not STARTED."""

    @dg.op(description="Collects ticks, makes bars of them, stores both, repairs what was lost, until it is ended.")
    def ingest(
        context: dg.OpExecutionContext,
        config: LiveConfig,
        vendor: VendorResource,
        bus: BusResource,
        stores: StoresResource,
    ) -> None:
        from market_pipeline.live.build import build_services, live_instruments
        from market_pipeline.live.thread import LiveThread

        settings = platform_settings(vendor, bus, stores)
        with readable_failures(), LogRelay(context.log) as relay:
            services = build_services(settings, config.services, run_id=context.run_id)
            watch = RunWatch(context.instance, context.run_id, context.log)
            reporter = LiveReporter(context, settings, live_instruments(settings), partitions, stores=stores, bus=bus)
            context.log.info(
                f"live: {', '.join(service.name for service in services)} of "
                f"{', '.join(each.symbol for each in reporter.instruments)}"
            )
            until = time.monotonic() + (config.seconds or float("inf"))
            with watch, LiveThread(settings, services, run_id=context.run_id) as live:
                while not (live.wait(LOOK_EVERY_S) or watch.over.is_set() or time.monotonic() > until):
                    if not watch.away:  # what is told there would be waited for, and lost
                        relay.drain()
                        reporter.look(live.health())
            relay.drain()
            reporter.close()

    @dg.job(
        name=LIVE_INGESTION,
        description=(
            "Runs the live services in one process: collector (vendor's WebSocket to NATS), aggregator (ticks to bars "
            "of every timeframe), ticks (to PostgreSQL), bridge (bars to ClickHouse), repair (minutes that live time "
            "lacks, from the vendor's REST) and throttle. The sensor *keep_live* keeps one run of it alive."
        ),
        tags=LIVE_TAGS,
    )
    def live_ingestion() -> None:
        ingest()

    return live_ingestion

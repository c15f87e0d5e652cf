"""The sensor that keeps freshness current without a run."""
# no `from __future__ import annotations`: Dagster reads the annotations of resources

from datetime import UTC, datetime

import dagster as dg

from market_pipeline.errors import MarketPipelineError
from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.checks.definitions import (
    DEAD_LETTERS,
    FRESHNESS,
    PARTIAL_CLOSED,
    dead_letter_verdict,
    freshness_verdict,
    partial_verdict,
)
from market_pipeline.orchestration.checks.verdict import Verdict
from market_pipeline.orchestration.loaded import last_loaded_days
from market_pipeline.orchestration.partitions import BarPartitions
from market_pipeline.orchestration.resources import BusResource, StoresResource

EVERY_S = 300
NEVER_LOADED = "no minutes were loaded lately: nothing can be stale"


def freshness_sensor(partitions: BarPartitions) -> dg.SensorDefinition:
    """Build the sensor that evaluates freshness by symbol and partial partitions every five minutes.

    It reports evaluations itself: a run each time would cost a process and a line among the runs, 288 times a day.
    """

    @dg.sensor(
        name="freshness",
        minimum_interval_seconds=EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Evaluates the checks freshness, partial_closed and dead_letters of bars_1m every five minutes, without a "
            "run."
        ),
    )
    def freshness(
        context: dg.SensorEvaluationContext, stores: StoresResource, bus: BusResource
    ) -> dg.SensorResult | dg.SkipReason:
        now = datetime.now(UTC)
        if not last_loaded_days(context.instance, MINUTES, partitions, now.date()):
            return dg.SkipReason(NEVER_LOADED)
        try:
            with stores.open() as opened:
                fresh = freshness_verdict(context.instance, opened, partitions, now)
        except MarketPipelineError as error:
            fresh = Verdict("error", f"the store cannot be asked: {error}")
        partial = partial_verdict(context.instance, partitions, now)
        return dg.SensorResult(
            asset_events=[
                fresh.evaluation(MINUTES, FRESHNESS),
                partial.evaluation(MINUTES, PARTIAL_CLOSED),
                dead_letter_verdict(bus).evaluation(MINUTES, DEAD_LETTERS),
            ]
        )

    return freshness

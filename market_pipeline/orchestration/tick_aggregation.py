"""The job `aggregate_ticks`: minutes from stored ticks, for days that the vendor's bars lack or are to be proven by."""
# no `from __future__ import annotations`: Dagster reads the annotations of ops

from datetime import UTC, date, datetime, timedelta

import dagster as dg
from pydantic import Field

from market_pipeline.orchestration.event_metadata import frame_table
from market_pipeline.orchestration.failures import readable_failures
from market_pipeline.orchestration.jobs import AGGREGATE_TICKS, CRASH_RETRY
from market_pipeline.orchestration.progress import log_progress
from market_pipeline.orchestration.resources import BusResource, StoresResource, platform_settings
from market_pipeline.orchestration.run_log import service_log


class AggregateConfig(dg.Config):
    """Which ticks are aggregated."""

    symbols: list[str] = Field(description="Symbols in any form: EUR/USD, EURUSD, C:EURUSD")
    first_day: str = Field(default="", description="First UTC day, 2024-03-01; empty: yesterday")
    last_day: str = Field(default="", description="Last UTC day, included; empty: the first day")


def days_of(config: AggregateConfig, today: date) -> tuple[date, date]:
    """Return the half-open range of days.

    Raises:
        dg.Failure: a day is not written as 2024-03-01.
    """
    try:
        first = date.fromisoformat(config.first_day) if config.first_day else today - timedelta(days=1)
        last = date.fromisoformat(config.last_day) if config.last_day else first
    except ValueError as error:
        raise dg.Failure(f"not a day: {error}; write it as 2024-03-01", allow_retries=False) from error
    return first, last + timedelta(days=1)


def build_aggregate_job() -> dg.JobDefinition:
    """Build the job that makes minutes of stored ticks and derives what they touch."""

    @dg.op(description="Reads stored ticks by hours, folds them into minutes, and derives every window they touch.")
    def aggregate(
        context: dg.OpExecutionContext, config: AggregateConfig, bus: BusResource, stores: StoresResource
    ) -> None:
        from market_pipeline import history

        days = days_of(config, datetime.now(UTC).date())
        with readable_failures(), service_log(context.log):
            report = history.aggregate_ticks(
                platform_settings(bus, stores),
                {symbol: [days] for symbol in config.symbols},
                run_id=context.run_id,
                progress=log_progress(context.log),
            )
        table = report.table
        context.add_output_metadata(
            {
                "days": f"{days[0]} to {days[1] - timedelta(days=1)}",
                "ticks": int(table["ticks"].sum()),
                "minutes": int(table["minutes"].sum()),
                "minutes complete": int(table["complete"].sum()),
                "seconds": round(report.seconds, 3),
                "by symbol": frame_table(table),
            }
        )

    @dg.job(
        name=AGGREGATE_TICKS,
        description=(
            "Makes minutes of the ticks in the tick store, under the source `historical_aggregated`, and derives again "
            "every window that they touch. A minute is complete only where the store proves that no tick is missing."
        ),
        tags=CRASH_RETRY,
    )
    def aggregate_ticks() -> None:
        aggregate()

    return aggregate_ticks

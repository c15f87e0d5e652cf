"""`restatements`: which stored bars were corrected, by the day on which that became known; its job and schedule.

The asset has no partitions: corrections are news, so each night's materialization is the report of that night, its
numbers become the asset's plots, and any other days can be asked for in its configuration. Partitions by day would
begin years before this platform knew anything, as rows of empty reports.
"""
# no `from __future__ import annotations`: Dagster reads the annotations of what it calls

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import polars as pl
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from pydantic import Field

from market_pipeline.market.timeframes import midnight
from market_pipeline.orchestration.assets.derived import DAILY_DERIVED, WEEKLY, bars_key
from market_pipeline.orchestration.assets.minutes import MINUTES, POOL
from market_pipeline.orchestration.event_metadata import Metadata, frame_table
from market_pipeline.orchestration.failures import readable_failures
from market_pipeline.orchestration.loaded import request_if_loaded
from market_pipeline.orchestration.pictures import sparkline
from market_pipeline.orchestration.resources import StoresResource

RESTATEMENTS = dg.AssetKey("restatements")
REPORT_RESTATEMENTS = "report_restatements"

KINDS = ("restated", "demoted", "withdrawn", "returned", "completed")
_LARGEST = ("largest_close", "largest_high", "largest_low")
_DETAIL = ("date", "symbol", "timeframe", "source", *KINDS, *_LARGEST, "largest_ts", "largest_batch", "last_known_at")

_DESCRIPTION = """Corrections of stored bars by UTC day, the day on which each became known.

- **restated**: other values; **demoted**: no longer complete; **withdrawn**: the vendor no longer has the bar;
  **returned**: it has it again; **completed**: the earlier bar was incomplete, and nobody could rely on it.
- The largest relative change of close, high and low counts bars that had been complete. With it stand the bar that
  changed most, which `market-pipeline trace` leads back to the vendor's request, and the batch that changed it.
- Plots and numbers are those of the last day that is over; the tables hold the running day too.

What was known before a correction stays readable: `read.bars(..., as_of=...)`, `market-pipeline bars --as-of`, and in
SQL the view `bar_changes`, one row a correction with the values before and after.
"""


class ReportConfig(dg.Config):
    """Which days are reported."""

    days: int = Field(default=30, ge=1, le=3_660, description="Number of UTC days")
    last_day: str = Field(default="", description="The last of them: 2026-11-05; empty: today, as far as it has come")

    def range(self, today: date) -> tuple[date, date]:
        """Return the first day and the day after the last.

        Raises:
            dagster.Failure: `last_day` is no date.
        """
        try:
            last = date.fromisoformat(self.last_day) if self.last_day else today
        except ValueError:
            raise dg.Failure(f"last_day {self.last_day!r} is no date: write 2026-11-05", allow_retries=False) from None
        return last - timedelta(days=self.days - 1), last + timedelta(days=1)


def build_restatements() -> dg.AssetsDefinition:
    """Build the asset; it reads the store and writes nothing."""

    @dg.asset(
        key=RESTATEMENTS,
        deps=[MINUTES, *(bars_key(code) for code in (*DAILY_DERIVED, WEEKLY))],
        group_name="reports",
        pool=POOL,
        kinds={"clickhouse"},
        description=_DESCRIPTION,
    )
    def restatements(
        context: dg.AssetExecutionContext, config: ReportConfig, stores: StoresResource
    ) -> dg.MaterializeResult:
        today = datetime.now(UTC).date()
        first, end = config.range(today)
        with readable_failures(), stores.open() as opened:
            frame = opened.restatements.by_day(midnight(first), midnight(end))
        metadata = report_metadata(frame, first, end, today)
        context.log.info(f"{first} to {end - timedelta(days=1)}: {_sentence(frame)}")
        return dg.MaterializeResult(metadata=metadata)

    return restatements


def report_restatements() -> UnresolvedAssetJobDefinition:
    """Return the job that writes the report."""
    return dg.define_asset_job(
        REPORT_RESTATEMENTS,
        selection=dg.AssetSelection.assets(RESTATEMENTS),
        description="Reports by day which stored bars were corrected. Choose other days in the run's configuration.",
    )


def daily_restatements() -> dg.ScheduleDefinition:
    """Return the schedule of the report, running by default: after the nightly load, which finds most corrections."""

    @dg.schedule(
        name="daily_restatements",
        job_name=REPORT_RESTATEMENTS,
        cron_schedule="30 1 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Reports which stored bars were corrected yesterday, and by the night's load.",
    )
    def daily_restatements(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return request_if_loaded(context, MINUTES, run_key="%Y-%m-%d", otherwise="nothing can have been corrected")

    return daily_restatements


def report_metadata(frame: pl.DataFrame, first: date, end: date, today: date) -> Metadata:
    """Return the metadata of a report on the days [first, end); `frame` as of `Restatements.by_day`."""
    days = pl.DataFrame({"date": pl.date_range(first, end, closed="left", eager=True)})
    sums = frame.group_by("date").agg(
        pl.col(KINDS).sum(), symbols=pl.col("symbol").n_unique(), largest_close=pl.col("largest_close").max()
    )
    by_day = days.join(sums, on="date", how="left").with_columns(pl.col(*KINDS, "symbols").fill_null(0)).sort("date")
    closed = by_day.filter(pl.col("date") < today)
    metadata: Metadata = {"range": f"{first} to {end - timedelta(days=1)}"}
    if closed.height:
        last = closed.row(-1, named=True)
        metadata |= {"day": str(last["date"]), **{kind: int(last[kind]) for kind in KINDS}}
    picture = sparkline([sum(row) for row in by_day.select(KINDS[:-1]).iter_rows()])
    if picture:
        metadata["picture"] = dg.MetadataValue.md(picture)
    corrected = by_day.filter(pl.sum_horizontal(KINDS) > 0)
    if corrected.height:
        # a batch id as a number would lose its last digits in a browser
        detail = frame.select(_DETAIL).with_columns(pl.col("largest_batch").cast(pl.String))
        detail = detail.sort("date", "largest_close", descending=True, nulls_last=True)
        metadata["by day"] = frame_table(_percent(corrected.reverse()))
        metadata["corrections"] = frame_table(_percent(detail))
    return metadata


def _percent(frame: pl.DataFrame) -> pl.DataFrame:
    """Show relative changes as percent."""
    present = [name for name in _LARGEST if name in frame.columns]
    return frame.with_columns((pl.col(present) * 100).round(4)).rename(
        {name: f"{name.replace('_', ' ')} (%)" for name in present}
    )


def _sentence(frame: pl.DataFrame) -> str:
    counts = [f"{int(frame[kind].sum()):,} {kind}" for kind in KINDS]
    return f"{', '.join(counts)}, of {frame['symbol'].n_unique():,} symbols"

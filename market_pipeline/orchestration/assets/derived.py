"""`bars_5m` to `bars_1d` as one step, and `bars_1w`: one fold of the winning minutes."""
# no `from __future__ import annotations`: Dagster reads the annotations of what it calls

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from market_pipeline.market.instruments import Instruments
from market_pipeline.market.timeframes import DERIVED, TIMEFRAMES
from market_pipeline.orchestration.assets.minutes import MINUTES, POOL
from market_pipeline.orchestration.columns import bar_metadata
from market_pipeline.orchestration.event_metadata import Metadata, derived_metadata
from market_pipeline.orchestration.failures import readable_failures
from market_pipeline.orchestration.partition_metadata import add_partition_metadata
from market_pipeline.orchestration.partitions import BarPartitions, materialization, partition_key
from market_pipeline.orchestration.progress import log_progress
from market_pipeline.orchestration.resources import BusResource, StoresResource, platform_settings
from market_pipeline.orchestration.run_identity import asked_keys, backfill_targets, shown_key
from market_pipeline.orchestration.run_log import service_log
from market_pipeline.orchestration.wanted import Wanted, describe, touched_weeks, wanted_days, wanted_weeks
from market_pipeline.settings import Settings

if TYPE_CHECKING:
    from market_pipeline.history.reports import DeriveReport

WEEKLY = "1w"
DAILY_DERIVED = tuple(code for code in DERIVED if code != WEEKLY)

_LENGTHS = {"m": "minute", "h": "hour", "d": "day", "w": "week"}


def bars_key(timeframe: str) -> dg.AssetKey:
    """Return the asset of a timeframe: `bars_5m`."""
    return dg.AssetKey(f"bars_{timeframe}")


def build_derived(partitions: BarPartitions) -> list[dg.AssetsDefinition]:
    """Build the step of the daily derived timeframes, and the weeks."""
    return [_daily(partitions), _weekly(partitions)]


def _daily(partitions: BarPartitions) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name="derived_bars",
        specs=[_spec(code, partitions) for code in DAILY_DERIVED],
        can_subset=True,
        partitions_def=partitions.daily,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=POOL,
        description="Folds the winning minutes into every selected timeframe in one read, and the weeks they touch.",
    )
    def derived_bars(context: dg.AssetExecutionContext, bus: BusResource, stores: StoresResource):  # type: ignore[no-untyped-def]  # Dagster reads a generator's annotation as the type of an output
        selected = [code for code in DAILY_DERIVED if bars_key(code) in context.selected_asset_keys]
        with_weeks = not backfill_targets(context.instance, context.run, bars_key(WEEKLY))
        codes = [*selected, WEEKLY] if with_weeks else selected
        done = _derive(context, platform_settings(bus, stores), partitions, codes, wanted_days)
        if with_weeks:
            _report_weeks(context, done, partitions)
        for code in selected:
            add_partition_metadata(context, bars_key(code), done.metadata(done.keys, code, shown_key(context)))
            yield dg.MaterializeResult(asset_key=bars_key(code))

    return derived_bars


def _weekly(partitions: BarPartitions) -> dg.AssetsDefinition:
    spec = _spec(WEEKLY, partitions)

    @dg.asset(
        key=spec.key,
        deps=[dg.AssetDep(bars_key("1d"), partition_mapping=partitions.week_of_days)],
        partitions_def=partitions.weekly,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=POOL,
        group_name=spec.group_name,
        kinds=spec.kinds,
        tags={"timeframe": WEEKLY},
        metadata=spec.metadata,
        description=spec.description,
    )
    def bars_1w(context: dg.AssetExecutionContext, bus: BusResource, stores: StoresResource) -> dg.MaterializeResult:
        done = _derive(context, platform_settings(bus, stores), partitions, [WEEKLY], wanted_weeks)
        add_partition_metadata(context, spec.key, done.metadata(done.keys, WEEKLY, shown_key(context)))
        return dg.MaterializeResult()

    return bars_1w


@dataclass(frozen=True)
class _Derived:
    """What a step derived: its partition keys, their days, and the report."""

    keys: Sequence[str]
    wanted: Wanted
    report: "DeriveReport"
    instruments: Instruments
    settle: timedelta

    def metadata(self, keys: Sequence[str], code: str, shown: str | None = None) -> dict[str, Metadata]:
        now = datetime.now(UTC)
        return derived_metadata(keys, code, self.report, self.instruments, now=now, settle=self.settle, shown=shown)


def _derive(
    context: dg.AssetExecutionContext,
    settings: Settings,
    partitions: BarPartitions,
    codes: Sequence[str],
    to_days: Callable[[Sequence[str], Instruments, date], Wanted],
) -> _Derived:
    # its clients take a second to import: a run waits for them, the UI must not
    from market_pipeline import history

    with readable_failures(), service_log(context.log):
        keys = asked_keys(context)
        wanted = to_days(keys, partitions.instruments, datetime.now(UTC).date())
        context.log.info(f"deriving {', '.join(codes)} of {describe(wanted)}")
        report = history.derive_bars(
            settings, wanted, codes, run_id=context.run.run_id, progress=log_progress(context.log)
        )
    return _Derived(keys, wanted, report, partitions.instruments, settings.history.settle)


def _spec(code: str, partitions: BarPartitions) -> dg.AssetSpec:
    parent = TIMEFRAMES[code].parent_code
    assert parent is not None
    number, unit = int(code[:-1]), _LENGTHS[code[-1]]
    length = unit if number == 1 else f"{number} {unit}s"
    return dg.AssetSpec(
        bars_key(code),
        deps=[MINUTES if parent == "1m" else bars_key(parent)],
        partitions_def=partitions.weekly if code == WEEKLY else partitions.daily,
        group_name="derived",
        kinds={"clickhouse", "nats", "polars"},
        tags={"timeframe": code},
        metadata=bar_metadata(code),
        description=(
            f"Bars of one {length}, the fold of the {parent} bars.\n\n"
            "Whatever subset of the timeframes a run selects, the same pure function makes them from one read of the "
            "**winning minutes**, cascaded from parent to child; so two runs cannot disagree, and deriving again "
            "changes nothing. Days are UTC days, weeks start on Sunday 00:00 UTC. A bar is `complete` if none of its "
            "expected minutes is missing; a window without a minute has no bar; only closed windows are stored."
        ),
    )


def _report_weeks(context: dg.AssetExecutionContext, done: _Derived, partitions: BarPartitions) -> None:
    """Record the weeks that the run's days touch as materialized: their bars were derived again with the days."""
    keys = [partition_key(sunday, symbol) for sunday, symbol in touched_weeks(done.wanted, partitions.instruments)]
    for key, metadata in done.metadata(keys, WEEKLY).items():
        context.log_event(materialization(bars_key(WEEKLY), key, metadata))

"""What Dagster knows of loaded partitions: which symbols are followed, up to which day, which loads were partial."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

import dagster as dg
from dagster._core.event_api import AssetRecordsFilter

from market_pipeline.orchestration.event_metadata import PARTIAL
from market_pipeline.orchestration.partitions import BarPartitions, partition_key, split_key

FOLLOWED_DAYS = 35
"""A symbol of which one of the last so many days was loaded is followed: kept up to date, and stale when it is not."""
PARTIAL_DAYS = 14
"""So many days back a partition whose last load was partial is looked for."""


def last_loaded_days(
    instance: dg.DagsterInstance, asset: dg.AssetKey, partitions: BarPartitions, today: date
) -> dict[str, date]:
    """Return, by instrument partition, the newest loaded day of the last FOLLOWED_DAYS; others are absent."""
    days = [today - timedelta(days=n) for n in range(FOLLOWED_DAYS + 1)]
    newest: dict[str, date] = {}
    for key in _latest_events(instance, asset, _keys(days, partitions)):
        day, partition = split_key(key)
        newest[partition] = max(day, newest.get(partition, day))
    return newest


def partial_partitions(
    instance: dg.DagsterInstance, asset: dg.AssetKey, partitions: BarPartitions, today: date
) -> list[tuple[date, str]]:
    """Return (day, instrument partition) of recent partitions whose last materialization says partial."""
    days = [today - timedelta(days=n) for n in range(PARTIAL_DAYS + 1)]
    latest = _latest_events(instance, asset, _keys(days, partitions))
    partial: list[tuple[date, str]] = []
    ids = list(latest.values())
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        records = instance.fetch_materializations(AssetRecordsFilter(asset, storage_ids=some), limit=len(some)).records
        for record in records:
            event = record.asset_materialization
            if event is not None and event.partition and _is_partial(event):
                partial.append(split_key(event.partition))
    return sorted(partial)


def request_if_loaded(
    context: dg.ScheduleEvaluationContext, minutes: dg.AssetKey, *, run_key: str, otherwise: str
) -> dg.RunRequest | dg.SkipReason:
    """Request the run of a schedule that has nothing to do before the first load, and then says why.

    `run_key`: format of the scheduled time. `otherwise`: what does not follow without minutes, for the skip's reason.
    """
    if context.instance.get_latest_materialization_event(minutes) is None:
        return dg.SkipReason(f"no minutes were ever loaded: {otherwise}")
    return dg.RunRequest(run_key=f"{context.scheduled_execution_time:{run_key}}")


def _is_partial(event: dg.AssetMaterialization) -> bool:
    value = event.metadata.get(PARTIAL)
    return value is not None and bool(value.value)


def _keys(days: Iterable[date], partitions: BarPartitions) -> set[str]:
    return {str(partition_key(day, partition)) for day in days for partition in partitions.instruments.partitions}


def _latest_events(instance: dg.DagsterInstance, asset: dg.AssetKey, keys: set[str]) -> dict[str, int]:
    """Return the storage id of each partition's newest materialization."""
    return dict(
        instance.event_log_storage.get_latest_storage_id_by_partition(
            asset, dg.DagsterEventType.ASSET_MATERIALIZATION, partitions=keys
        )
    )

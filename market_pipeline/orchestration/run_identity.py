"""Which run this is, which chain of retries it belongs to, and which partitions it holds."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    BACKFILL_ID_TAG,
    PARTITION_NAME_TAG,
)

from market_pipeline.errors import BadRange


def root_run_id(run: dg.DagsterRun) -> str:
    """Return the first run of the chain of retries and re-executions: its checkpoint is theirs."""
    return run.root_run_id or run.run_id


def partition_keys_of(run: dg.DagsterRun, partitions: dg.PartitionsDefinition) -> Sequence[str] | None:
    """Return the partition keys that a run's tags ask for, or None for a run without partitions.

    A check is not partitioned, so that its context knows no keys; the tags of its run do.
    """
    start, end = run.tags.get(ASSET_PARTITION_RANGE_START_TAG), run.tags.get(ASSET_PARTITION_RANGE_END_TAG)
    if start is None or end is None:
        single = run.tags.get(PARTITION_NAME_TAG)
        return None if single is None else [single]
    return partitions.get_partition_keys_in_range(dg.PartitionKeyRange(start, end))


def asked_keys(context: dg.AssetExecutionContext) -> Sequence[str]:
    """Return the partition keys that an asset's run is to materialize: one, or thousands.

    Raises:
        BadRange: the run names none.
    """
    if not (context.has_partition_key or context.has_partition_key_range):
        raise BadRange(
            "this run names no partitions: choose a range in the UI, or give the tags "
            f'{{"{ASSET_PARTITION_RANGE_START_TAG}": "2024-03-01|EURUSD", '
            f'"{ASSET_PARTITION_RANGE_END_TAG}": "2024-03-05|EURUSD"}}'
        )
    return context.partition_keys


def shown_key(context: dg.AssetExecutionContext) -> str:
    """Return the partition whose event a run writes last, which is the one that the asset's page shows.

    Dagster writes a range's events in the order of a set; built the same way, in the same process, it is the same.
    """
    partitions = context.assets_def.partitions_def
    assert partitions is not None
    subset = partitions.empty_subset().with_partition_key_range(partitions, context.partition_key_range)
    return list(subset.get_partition_keys())[-1]


def backfill_targets(instance: dg.DagsterInstance, run: dg.DagsterRun, asset: dg.AssetKey) -> bool:
    """Say whether the run belongs to a backfill that will itself materialize `asset`."""
    backfill_id = run.tags.get(BACKFILL_ID_TAG)
    backfill = instance.get_backfill(backfill_id) if backfill_id else None
    return backfill is not None and asset in (backfill.asset_selection or [])

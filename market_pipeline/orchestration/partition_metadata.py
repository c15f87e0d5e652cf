"""Metadata for each partition of a ranged run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.execution.context.metadata_logging import (
    AssetMetadataHandle,
    OutputMetadataAccumulator,
    OutputMetadataHandle,
)


def add_partition_metadata(
    context: dg.AssetExecutionContext, asset: dg.AssetKey, by_partition: Mapping[str, Mapping[str, Any]]
) -> None:
    """Attach to each partition's materialization its own metadata.

    `context.add_asset_metadata(partition_key=...)` lists the run's partitions and copies all that was added before, on
    every call: 30 s for 1,800 partitions of one asset. The accumulator that it fills is therefore filled in one go.
    """
    step = context.get_step_execution_context()
    held = step._metadata_accumulator
    filled: dict[OutputMetadataHandle | AssetMetadataHandle, Mapping[str, Any]] = dict(held.per_output_metadata)
    for key, values in by_partition.items():
        handle = AssetMetadataHandle(asset_key=asset, partition_key=key)
        filled[handle] = {**filled.get(handle, {}), **values}
    step._metadata_accumulator = OutputMetadataAccumulator(per_output_metadata=filled)

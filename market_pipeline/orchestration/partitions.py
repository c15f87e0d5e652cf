"""Partitions: UTC day × the instrument's partition, and UTC weeks from Sunday × the same, with the map between them.

A partition key reads `2024-03-01|EURUSD`. The running day and week have a partition too (`end_offset=1`); what is
loaded into it is partial until the day is over and settled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import dagster as dg

from market_pipeline.market.instruments import Instruments

DATE, SYMBOL = "date", "symbol"
_FORMAT = "%Y-%m-%d"


@dataclass(frozen=True)
class BarPartitions:
    """Hold the partitions of one set of instruments: `daily` of every timeframe up to a day, `weekly` of 1w."""

    instruments: Instruments
    daily: dg.MultiPartitionsDefinition
    weekly: dg.MultiPartitionsDefinition

    @property
    def week_of_days(self) -> dg.MultiPartitionMapping:
        """Map a week to its seven days, of which those in the future or before the history need not exist."""
        return dg.MultiPartitionMapping(
            {
                DATE: dg.DimensionPartitionMapping(
                    DATE, dg.TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True)
                ),
                SYMBOL: dg.DimensionPartitionMapping(SYMBOL, dg.IdentityPartitionMapping()),
            }
        )


def bar_partitions(instruments: Instruments) -> BarPartitions:
    """Build the partitions from the earliest `history_start` on, one per UTC day or week and instrument partition."""
    first = min(instrument.history_start for instrument in instruments)
    symbols = dg.StaticPartitionsDefinition(instruments.partitions)
    return BarPartitions(
        instruments=instruments,
        daily=dg.MultiPartitionsDefinition(
            {DATE: dg.DailyPartitionsDefinition(start_date=first.strftime(_FORMAT), end_offset=1), SYMBOL: symbols}
        ),
        weekly=dg.MultiPartitionsDefinition(
            {
                # a week that the first day cuts still has a partition, so that no day is without a week
                DATE: dg.WeeklyPartitionsDefinition(start_date=sunday_of(first).strftime(_FORMAT), end_offset=1),
                SYMBOL: symbols,
            }
        ),
    )


def sunday_of(day: date) -> date:
    """Return the Sunday on or before a UTC day: the label of its week."""
    return day - timedelta(days=day.isoweekday() % 7)


def partition_key(day: date, partition: str) -> dg.MultiPartitionKey:
    """Return the key of a day (or of a week, by its Sunday) and an instrument partition."""
    return dg.MultiPartitionKey({DATE: day.strftime(_FORMAT), SYMBOL: partition})


def split_key(key: str) -> tuple[date, str]:
    """Return the day and the instrument partition of a key, be it a MultiPartitionKey or its text."""
    day, _, partition = str(key).partition("|")
    return date.fromisoformat(day), partition


def materialization(asset: dg.AssetKey, key: str, metadata: Mapping[str, Any]) -> dg.AssetMaterialization:
    """Return the materialization of one partition, tagged by dimension as Dagster tags its own."""
    day, partition = split_key(key)
    tags = {f"dagster/partition/{DATE}": day.strftime(_FORMAT), f"dagster/partition/{SYMBOL}": partition}
    return dg.AssetMaterialization(asset, partition=str(key), metadata=metadata, tags=tags)

"""Ticks in PostgreSQL, with TimescaleDB where it is there: batches in exactly once, frames out."""

from market_pipeline.stores.ticks.batch import BatchResult, Outcome, StoreReport, TickBatch
from market_pipeline.stores.ticks.losses import LOSSES_SCHEMA, Loss, TickLoss
from market_pipeline.stores.ticks.migrations import Layout
from market_pipeline.stores.ticks.reader import TickReader
from market_pipeline.stores.ticks.store import Dropped, TickStore

__all__ = [
    "LOSSES_SCHEMA",
    "BatchResult",
    "Dropped",
    "Layout",
    "Loss",
    "Outcome",
    "StoreReport",
    "TickBatch",
    "TickLoss",
    "TickReader",
    "TickStore",
]

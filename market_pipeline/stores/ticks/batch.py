"""A batch of ticks on its way into the store, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property

import polars as pl


@dataclass(frozen=True)
class TickBatch:
    """Hold the ticks of one message.

    batch_id: 1 … 2^63 − 1, given by the collector: the same whenever the message is delivered again.
    symbol: the key, of every row. epoch: of the lease under which the collector worked, rising from owner to owner.
    frame: columns of STORED_TICK_SCHEMA (as `decode_ticks` returns them), in the order of arrival.
    replayed: a dead letter that is sent again: its collector had the lease when it sent it first, so it is not fenced.
    """

    batch_id: int
    symbol: str
    epoch: int
    frame: pl.DataFrame
    collector_id: str = ""
    session_id: str = ""
    correlation_id: str = ""
    replayed: bool = False

    @property
    def rows(self) -> int:
        """Return the number of ticks; a heartbeat has none."""
        return self.frame.height

    @cached_property
    def first_ts(self) -> datetime:
        """Return the earliest ts."""
        return self._edge("ts", "min")

    @cached_property
    def last_ts(self) -> datetime:
        """Return the latest ts."""
        return self._edge("ts", "max")

    @cached_property
    def first_received(self) -> datetime:
        """Return the time at which the collector had the first of the ticks."""
        return self._edge("received_at", "min")

    def _edge(self, column: str, of: str) -> datetime:
        series = self.frame.get_column(column)
        value = series.min() if of == "min" else series.max()
        if not isinstance(value, datetime):
            raise ValueError(f"batch {self.batch_id} has no {column}")
        return value


class Outcome(StrEnum):
    """What became of a batch; every one of them is final: acknowledge the message, or dead-letter it if REJECTED."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # it was stored before: delivered again, or by another worker
    FENCED = "fenced"  # a collector of a later epoch reigns over the symbol
    EMPTY = "empty"  # a heartbeat
    REJECTED = "rejected"  # not what a batch of ticks may be; the detail says why


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Say what became of one batch."""

    batch_id: int
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StoreReport:
    """Say what became of the batches of one call, in the order in which they were given.

    ticks: rows copied. superseded: rows of collectors of older epochs, taken away because a batch brought them too.
    """

    results: Sequence[BatchResult]
    ticks: int = 0
    superseded: int = 0

    @property
    def counts(self) -> dict[Outcome, int]:
        """Return the number of batches by outcome."""
        return dict(Counter(result.outcome for result in self.results))

    def of(self, outcome: Outcome) -> list[BatchResult]:
        """Return the batches with an outcome."""
        return [result for result in self.results if result.outcome is outcome]

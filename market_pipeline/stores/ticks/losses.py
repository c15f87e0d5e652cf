"""Time in which ticks may have been lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import polars as pl

LOSSES_SCHEMA = pl.Schema(
    {
        "symbol": pl.String(),
        "start": pl.Datetime("ms", "UTC"),
        "end": pl.Datetime("ms", "UTC"),
        "cause": pl.String(),
        "session_id": pl.String(),
        "collector_id": pl.String(),
        "noted_at": pl.Datetime("ms", "UTC"),
    }
)
# A collector that lost its lease went on sending; its other causes are the collector's own.
LEASE = "lease"


class Loss(Protocol):
    """Be an interval [start, end), UTC, of one symbol (the key) in which ticks may have been lost."""

    @property
    def symbol(self) -> str: ...
    @property
    def start(self) -> datetime: ...
    @property
    def end(self) -> datetime: ...
    @property
    def cause(self) -> str: ...
    @property
    def session_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class TickLoss:
    """Hold one such interval: cause is disconnect, overflow, silence, lease, expired, ..."""

    symbol: str
    start: datetime
    end: datetime
    cause: str
    session_id: str = ""
    collector_id: str = ""


def parameters(losses: Iterable[Loss]) -> dict[str, list[Any]]:
    """Return the losses as the arrays that losses_record.sql takes.

    Raises:
        ValueError: an interval ends at or before its start.
    """
    rows = list(losses)
    for loss in rows:
        if loss.end <= loss.start:
            raise ValueError(f"the loss of {loss.symbol} ends ({loss.end}) at or before its start ({loss.start})")
    return {
        "symbol": [loss.symbol for loss in rows],
        "start": [loss.start for loss in rows],
        "end": [loss.end for loss in rows],
        "cause": [loss.cause for loss in rows],
        "session_id": [loss.session_id for loss in rows],
        "collector_id": [str(getattr(loss, "collector_id", "")) for loss in rows],
    }

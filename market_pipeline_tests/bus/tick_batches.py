"""Batches of ticks made from frames, and who of two collectors is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import polars as pl

from market_pipeline.bus.tick_envelope import EncodedTicks, TickHeaders
from market_pipeline.market.timeframes import from_ms
from market_pipeline.tick_payload import encode_ticks


def encode_tick_batch(frame: pl.DataFrame, headers: TickHeaders) -> EncodedTicks:
    """Encode ticks (TICK_SCHEMA, one symbol, in the order of arrival) under headers whose rows and times are filled in.

    Raises:
        InvalidTicks: a column is missing or of another dtype, or the rows are of more than one symbol.
    """
    if frame.is_empty():
        return EncodedTicks(replace(headers, rows=0, first_ts=None, last_ts=None), b"")
    payload = encode_ticks(frame, headers.batch_id)
    ts = frame.get_column("ts").to_physical()
    first, last = (from_ms(cast(int, value)) for value in (ts.min(), ts.max()))
    return EncodedTicks(replace(headers, rows=frame.height, first_ts=first, last_ts=last), payload)


class EpochFence:
    """Tell batches of the collector that holds the lease from those of one that lost it and does not know yet."""

    def __init__(self, highest: Mapping[str, int] | None = None) -> None:
        """Start from the highest epochs known by symbol: those of a checkpoint."""
        self.highest = dict(highest or {})

    def admits(self, headers: TickHeaders) -> bool:
        """Return False for a batch of an epoch below the highest seen of its symbol."""
        if headers.epoch < self.highest.get(headers.symbol, 0):
            return False
        self.highest[headers.symbol] = headers.epoch
        return True

"""Ticks of one symbol as arrays: what live bars are made of, a few ticks at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_pipeline.market.ticks import QUOTE, TRADE

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TickArrays:
    """Hold ticks in the order of their arrival; ts and received are epoch ms, null numbers are NaN.

    Frames of a few rows cost a hundred times what their rows do, so the live road has arrays until a bar is made.
    """

    ts: Ints
    received: Ints
    quote: Bools
    trade: Bools
    bid: Floats
    ask: Floats
    price: Floats
    size: Floats

    @classmethod
    def of(cls, ticks: pl.DataFrame) -> TickArrays:
        """Return the ticks of a frame: ts, received_at, kind and what there is of bid, ask, price and size."""
        kind = ticks.get_column("kind")
        bid, ask, price, size = (
            ticks.get_column(name).to_numpy() if name in ticks.columns else np.full(ticks.height, np.nan)
            for name in ("bid", "ask", "price", "size")
        )
        return cls(
            ts=ticks.get_column("ts").to_physical().to_numpy(),
            received=ticks.get_column("received_at").to_physical().to_numpy(),
            quote=kind.eq_missing(QUOTE).to_numpy(),
            trade=kind.eq_missing(TRADE).to_numpy(),
            bid=bid,
            ask=ask,
            price=price,
            size=size,
        )

    def __len__(self) -> int:
        return len(self.ts)

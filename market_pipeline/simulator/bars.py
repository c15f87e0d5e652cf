"""Bars as a bundle of numpy columns: the simulator's currency, made for speed and for folding without polars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl

from market_pipeline.simulator.hashing import FloatArray, Int64Array


@dataclass(frozen=True, slots=True)
class Bars:
    """Hold bars in time order, one array per column.

    `ts` is the open of the window in epoch milliseconds, `trades` counts trades (stocks, crypto) or quotes (forex),
    `vwap` is the volume-weighted average price.
    """

    ts: Int64Array
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray
    vwap: FloatArray
    trades: Int64Array

    def __len__(self) -> int:
        return len(self.ts)

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def take(self, at: slice | np.ndarray) -> Bars:
        """Return the bars at the positions (a slice, a mask or an index)."""
        return Bars(**{name: column[at] for name, column in self.columns().items()})

    def between(self, start_ms: int, end_ms: int) -> Bars:
        """Return the bars that open in [start, end)."""
        return self.take(slice(*np.searchsorted(self.ts, (start_ms, end_ms))))

    def with_columns(self, **columns: np.ndarray) -> Bars:
        """Return the bars with some columns replaced."""
        return replace(self, **columns)

    def to_frame(self) -> pl.DataFrame:
        """Return a frame: ts Datetime('ms', 'UTC'), trades Int64, all else Float64."""
        return pl.DataFrame(self.columns()).with_columns(pl.col("ts").cast(pl.Datetime("ms", "UTC")))

    @staticmethod
    def from_frame(frame: pl.DataFrame) -> Bars:
        """Read a frame with the columns of `to_frame`."""
        columns = {field.name: frame[field.name] for field in fields(Bars)}
        columns["ts"] = columns["ts"].dt.epoch("ms")
        return Bars(**{name: np.ascontiguousarray(column.to_numpy()) for name, column in columns.items()})

    @staticmethod
    def empty() -> Bars:
        """Return no bars."""
        whole, fraction = np.empty(0, np.int64), np.empty(0, np.float64)
        return Bars(whole, fraction, fraction, fraction, fraction, fraction, fraction, whole)

    @staticmethod
    def concat(parts: Sequence[Bars]) -> Bars:
        """Join parts that follow each other in time."""
        filled = [part for part in parts if len(part)]
        if len(filled) == 1:
            return filled[0]
        if not filled:
            return Bars.empty()
        return Bars(*(np.concatenate([getattr(part, f.name) for part in filled]) for f in fields(Bars)))

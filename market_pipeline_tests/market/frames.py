"""Made-up frames of bars for tests of the market room."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import polars as pl

from market_pipeline.market.bars import BAR_SCHEMA, TS, VENDOR_HISTORICAL

START = datetime(2024, 1, 8, tzinfo=UTC)  # a Monday


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


def times(start: datetime, offsets: Sequence[int] | np.ndarray, unit_ms: int = 60_000) -> pl.Series:
    """Return start + n units for each n, as ts."""
    first = int(start.timestamp() * 1000)
    return pl.Series("ts", first + np.asarray(offsets, dtype=np.int64) * unit_ms).cast(TS)


def minute_bars(
    start: datetime = START,
    offsets: Sequence[int] | np.ndarray = range(10),
    *,
    seed: int = 7,
    symbol: str = "EURUSD",
    complete: bool | Sequence[bool] = True,
    source: str | Sequence[str] = VENDOR_HISTORICAL,
    revision: int | Sequence[int] = 1,
    no_vwap: Sequence[int] = (),
) -> pl.DataFrame:
    """Return plausible 1m bars with prices and volumes of two decimals at start + n minutes."""
    n = len(offsets)
    rng = np.random.default_rng(seed)
    opened, closed = (rng.integers(9_000, 11_000, n) / 100 for _ in range(2))
    high = np.maximum(opened, closed) + rng.integers(0, 100, n) / 100
    low = np.minimum(opened, closed) - rng.integers(0, 100, n) / 100
    vwap = [None if row in no_vwap else round(float((high[row] + low[row]) / 2), 4) for row in range(n)]

    def column(value: object) -> list[object]:
        return list(value) if isinstance(value, list | tuple) else [value] * n

    return pl.DataFrame(
        {
            "symbol": [symbol] * n,
            "timeframe": ["1m"] * n,
            "ts": times(start, offsets),
            "source": column(source),
            "origin": [""] * n,
            "open": opened,
            "high": high,
            "low": low,
            "close": closed,
            "volume": rng.integers(1, 100_000, n) / 100,
            "vwap": pl.Series(vwap, dtype=pl.Float64),
            "trades": rng.integers(1, 50, n),
            "complete": column(complete),
            "revision": column(revision),
            "is_deleted": [0] * n,
        },
        schema=BAR_SCHEMA,
    )

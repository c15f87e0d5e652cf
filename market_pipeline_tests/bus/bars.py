"""Bars to publish."""

from __future__ import annotations

import numpy as np
import polars as pl

from market_pipeline.market.bars import BAR_SCHEMA

START_MS = 1_704_067_200_000  # 2024-01-01


def bars(rows: int, *, symbol: str = "EURUSD", seed: int = 0, random: bool = False) -> pl.DataFrame:
    """Minutes of a walk, or of noise that no codec shrinks."""
    rng = np.random.default_rng(seed)
    walk = np.round(1.1 + np.cumsum(rng.normal(0, 1e-5, rows)), 5)

    def price(offset: float) -> np.ndarray:
        return rng.random(rows) if random else walk + offset

    vwap = pl.Series(price(1e-5)).scatter(np.flatnonzero(rng.random(rows) < 0.1), None)
    return pl.DataFrame(
        {
            "symbol": pl.repeat(symbol, rows, eager=True),
            "timeframe": pl.repeat("1m", rows, eager=True),
            "ts": START_MS + 60_000 * np.arange(rows),
            "source": pl.repeat("vendor_historical", rows, eager=True),
            "origin": pl.repeat("", rows, eager=True),
            "open": price(0.0),
            "high": price(1e-4),
            "low": price(-1e-4),
            "close": price(2e-5),
            "volume": rng.integers(1, 300, rows),
            "vwap": vwap,
            "trades": rng.integers(1, 300, rows),
            "complete": pl.repeat(True, rows, eager=True),
            "revision": pl.repeat(1_750_000_000_000, rows, eager=True),
            "is_deleted": pl.repeat(0, rows, eager=True),
        }
    ).select(
        pl.from_epoch(name, time_unit="ms").dt.replace_time_zone("UTC").cast(dtype)
        if name == "ts"
        else pl.col(name).cast(dtype)
        for name, dtype in BAR_SCHEMA.items()
    )

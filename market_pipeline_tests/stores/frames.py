"""Frames of bars for the tests of this room."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from market_pipeline import payload
from market_pipeline.market.bars import BAR_SCHEMA, TS, VENDOR_HISTORICAL
from market_pipeline.stores.clickhouse import Client

MINUTE = timedelta(minutes=1)
START = datetime(2024, 3, 4, tzinfo=UTC)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def minutes(count: int, start: datetime = START, *, seed: int = 1, **columns: Any) -> pl.DataFrame:
    """Return `count` plausible bars of 1m with `batch_id`; `columns` replace a column by one value."""
    rng = np.random.default_rng(seed)
    opened = np.round(1 + np.cumsum(rng.normal(0, 1e-4, count)), 5)
    spread = np.round(rng.uniform(0, 2e-4, (2, count)), 5)
    frame = pl.DataFrame(
        {
            "symbol": ["EURUSD"] * count,
            "timeframe": ["1m"] * count,
            "ts": pl.Series([start + i * MINUTE for i in range(count)], dtype=TS),
            "source": [VENDOR_HISTORICAL] * count,
            "origin": [""] * count,
            "open": opened,
            "high": opened + spread[0],
            "low": opened - spread[1],
            "close": opened,
            "volume": rng.integers(1, 900, count).astype(float),
            "vwap": pl.Series(opened).scatter(range(0, count, 7), None) if count else [],
            "trades": rng.integers(1, 900, count),
            "complete": [True] * count,
            "revision": [1_700_000_000_000] * count,
            "is_deleted": [0] * count,
            "batch_id": [7] * count,
        },
        schema=payload.BATCH_SCHEMA,
    )
    return frame.with_columns(
        pl.lit(value).cast(payload.BATCH_SCHEMA[name]).alias(name) for name, value in columns.items()
    )


def bar(ts: datetime = START, **columns: Any) -> pl.DataFrame:
    """Return one bar."""
    return minutes(1, ts, **columns)


def tombstones(frame: pl.DataFrame, *, revision: int) -> pl.DataFrame:
    """Return the tombstones of bars."""
    zero = {"open": 0.0, "high": 0.0, "low": 0.0, "close": 0.0, "volume": 0.0}
    return frame.with_columns(
        *(pl.lit(value).alias(name) for name, value in zero.items()),
        pl.lit(None, pl.Float64).alias("vwap"),
        pl.lit(0, pl.UInt32).alias("trades"),
        pl.lit(1, pl.UInt8).alias("is_deleted"),
        pl.lit(revision, pl.UInt64).alias("revision"),
    )


def plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the columns of BAR_SCHEMA, sorted: what two frames are compared by."""
    return frame.select(list(BAR_SCHEMA)).sort("symbol", "timeframe", "source", "ts")


def raw_rows(client: Client) -> int:
    """Return the number of stored rows of bars: all sources, and older revisions as far as merges left them."""
    return int(client.rows("SELECT count() FROM bars")[0][0])

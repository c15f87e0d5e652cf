"""Ticks for the tests: made ones and real ones, in batches."""

from __future__ import annotations

import itertools
import secrets
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import polars as pl

from market_pipeline.market.ticks import OPTIONAL, check_tick_columns
from market_pipeline.stores.ticks import TickBatch
from market_pipeline.tick_payload import decode_ticks, encode_ticks

START = datetime(2024, 3, 5, 12, tzinfo=UTC)
FULL = Path(__file__).parents[3].parent / "shared" / "data" / "eurusd_oanda_quotes_2014.parquet"
_symbols = itertools.count()


def new_symbol() -> str:
    """Return a symbol that no other test has: the tests of a module share a database."""
    return f"SYM{next(_symbols)}"


def quotes(symbol: str, *rows: tuple[int, float, float], start: datetime = START) -> pl.DataFrame:
    """Return quotes of (ms after `start`, bid, ask), received 5 ms later."""
    ts = [start + timedelta(milliseconds=ms) for ms, _, _ in rows]
    frame = pl.DataFrame(
        {"ts": ts, "bid": [bid for _, bid, _ in rows], "ask": [ask for _, _, ask in rows]},
        schema={"ts": pl.Datetime("ms", "UTC"), "bid": pl.Float64, "ask": pl.Float64},
    )
    return completed(frame, symbol)


def completed(quotes: pl.DataFrame, symbol: str) -> pl.DataFrame:
    """Return ts, bid, ask as ticks."""
    frame = quotes.with_columns(
        symbol=pl.lit(symbol), kind=pl.lit("quote"), received_at=pl.col("ts").dt.offset_by("5ms")
    )
    return check_tick_columns(frame, where="quotes")


def batch(frame: pl.DataFrame, epoch: int = 1, *, batch_id: int | None = None, collector: str = "a") -> TickBatch:
    """Return a batch as a consumer makes it: encoded and decoded."""
    batch_id = batch_id or secrets.randbelow(2**63 - 1) + 1
    decoded = decode_ticks(encode_ticks(frame, batch_id))
    return TickBatch(batch_id, frame["symbol"][0], epoch, decoded, collector, f"session-{collector}", "correlation")


def batches(frame: pl.DataFrame, size: int, epoch: int = 1, *, collector: str = "a") -> list[TickBatch]:
    """Cut ticks into batches."""
    return [batch(part, epoch, collector=collector) for part in frame.iter_slices(size)]


def real_quotes(rows: int | None = None) -> pl.DataFrame:
    """Return EUR/USD quotes of OANDA, May 2014: the full file where it is present, else the cut that ships."""
    if FULL.is_file():
        frame = pl.read_parquet(FULL)
    else:
        with resources.as_file(resources.files("market_pipeline.simulator") / "samples") as folder:
            frame = pl.read_parquet(folder / "eurusd_oanda_quotes_2014.parquet")
    return frame.select("ts", "bid", "ask").head(rows or frame.height)


def values(frame: pl.DataFrame) -> list[tuple[object, ...]]:
    """Return what makes ticks equal, in order."""
    return frame.select("ts", "kind", *OPTIONAL).rows()

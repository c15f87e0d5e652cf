"""Real bars and quotes for the tests: cuts that ship in keys/, and the full files where they are present."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

KEYS = Path(__file__).parent / "keys"
FULL = Path(__file__).parents[2].parent / "shared" / "data"

OHLC = ("open", "high", "low", "close")
OHLCV = (*OHLC, "volume")

needs_full_data = pytest.mark.skipif(
    not FULL.is_dir(), reason="the full market data (../shared/data) is not here; the cuts in keys/ are tested"
)


def key(name: str) -> pl.DataFrame:
    """Read a cut that ships with the tests."""
    return pl.read_parquet(KEYS / f"{name}.parquet")


def full(name: str) -> pl.DataFrame:
    """Read a full file of real data."""
    return pl.read_parquet(FULL / f"{name}.parquet")


def side(bars: pl.DataFrame, basis: str) -> pl.DataFrame:
    """Return the bid or the ask of two-sided bars as bars without a volume."""
    return bars.select("ts", *[pl.col(f"{basis}_{name}").alias(name) for name in OHLC], volume=pl.lit(0.0))


def whole_windows(folded: pl.DataFrame, finer: pl.DataFrame, length: str) -> pl.DataFrame:
    """Leave out the first and last window, which the file may cut."""
    first, last = finer["ts"].min(), finer["ts"].max()
    return folded.filter(
        (pl.col("ts") >= first) & (pl.col("ts").dt.offset_by(length) <= pl.lit(last).dt.offset_by("1m"))
    )


def assert_equal_bars(made: pl.DataFrame, wanted: pl.DataFrame, columns: tuple[str, ...], at_least: int) -> None:
    """Compare bit for bit: the same windows, the same values; `at_least` guards against comparing nothing."""
    first, last = made["ts"].min(), made["ts"].max()
    wanted = wanted.filter(pl.col("ts").is_between(first, last))
    assert made["ts"].to_list() == wanted["ts"].to_list()
    assert made.height >= at_least
    for name in columns:
        wrong = made.select("ts", name).with_columns(wanted=wanted[name]).filter(pl.col(name) != pl.col("wanted"))
        assert wrong.is_empty(), f"{name}: {wrong.height} of {made.height} differ, first {wrong.row(0)}"

from __future__ import annotations

import struct

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.market.bars import BAR_SCHEMA, empty_bars
from market_pipeline.market.digest import DIGEST_COLUMNS, MIX, MULTIPLIERS, NULL_VWAP, row_digests, value_digest
from market_pipeline_tests.market.frames import minute_bars

MASK = 2**64 - 1


def by_hand(frame: pl.DataFrame) -> list[int]:
    """Compute the documented formula in plain integers."""
    digests = []
    for row in frame.with_columns(pl.col("ts").dt.epoch("ms")).iter_rows(named=True):
        total = 0
        for name, multiplier in zip(DIGEST_COLUMNS, MULTIPLIERS, strict=True):
            value = row[name]
            if value is None:
                word = NULL_VWAP
            elif isinstance(value, float):
                (word,) = struct.unpack("<Q", struct.pack("<d", value))
            else:
                word = int(value) & MASK
            total = (total + multiplier * (word ^ (word >> 32))) & MASK
        mixed = ((total ^ (total >> 29)) * MIX) & MASK
        digests.append(mixed ^ (mixed >> 32))
    return digests


def test_numpy_computes_the_documented_formula() -> None:
    bars = minute_bars(offsets=range(500), no_vwap=[0, 7])
    assert row_digests(bars).tolist() == by_hand(bars)
    assert value_digest(bars) == sum(by_hand(bars)) & MASK


def test_rows_beyond_one_chunk_are_digested_alike() -> None:
    bars = minute_bars(offsets=range(40_000))
    pieces = [row_digests(bars.slice(start, 7_000)) for start in range(0, 40_000, 7_000)]
    assert (row_digests(bars) == np.concatenate(pieces)).all()


def test_this_digest_is_fixed() -> None:
    """Stored headers and the SQL of the store hold it (ClickHouse gave this number for these rows): it may not move."""
    bars = pl.DataFrame(
        {
            "ts": [1_700_000_000_000, -60_000, 1_700_000_060_000],
            "open": [1.5, -0.0, 3.3],
            "high": [2.5, 0.0, 3.4],
            "low": [0.1, 1e-300, 3.2],
            "close": [1.7, 1e300, 3.3],
            "volume": [1e9, 0.0, 7.0],
            "vwap": [None, 1.2, 0.0],
            "trades": [5, 0, 2**32 - 1],
            "complete": [True, False, True],
            "is_deleted": [0, 1, 0],
        }
    ).cast({name: BAR_SCHEMA[name] for name in DIGEST_COLUMNS})
    assert value_digest(bars) == 14_283_125_411_990_108_755
    assert value_digest(empty_bars()) == 0


def test_multipliers_are_odd_and_distinct() -> None:
    assert all(each % 2 for each in (*MULTIPLIERS, MIX))
    assert len({*MULTIPLIERS, MIX}) == len(DIGEST_COLUMNS) + 1


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 50))
def test_the_order_of_rows_does_not_matter(seed: int, rows: int) -> None:
    bars = minute_bars(offsets=range(rows), seed=seed)
    assert value_digest(bars.sample(fraction=1, shuffle=True, seed=seed)) == value_digest(bars)


@given(seed=st.integers(0, 2**32 - 1), row=st.integers(0, 9), bit=st.integers(0, 63), data=st.data())
def test_any_single_bit_of_any_value_changes_it(seed: int, row: int, bit: int, data: st.DataObject) -> None:
    bars = minute_bars(seed=seed)
    name = data.draw(st.sampled_from(DIGEST_COLUMNS))
    column = bars[name]
    if column.dtype == pl.Float64:
        words = column.to_numpy().copy().view(np.uint64)
        words[row] ^= np.uint64(1) << np.uint64(bit)
        changed = pl.Series(name, words.view(np.float64))
    elif column.dtype == pl.Boolean:
        changed = pl.Series(name, [value ^ (at == row) for at, value in enumerate(column)])
    else:
        width = {"ts": 48, "trades": 32, "is_deleted": 1}[name]
        numbers = column.to_physical().cast(pl.Int64).to_numpy().copy()
        numbers[row] ^= 1 << (bit % width)
        changed = pl.Series(name, numbers).cast(column.dtype)
    assert value_digest(bars.with_columns(changed)) != value_digest(bars)


@pytest.mark.parametrize("name", [name for name in DIGEST_COLUMNS if name not in {"complete", "is_deleted"}])
def test_two_rows_that_exchange_a_value_change_it(name: str) -> None:
    bars = minute_bars(no_vwap=[1])
    values = bars[name].to_list()
    values[1], values[2] = values[2], values[1]
    exchanged = bars.with_columns(pl.Series(name, values, dtype=bars.schema[name]))
    assert value_digest(exchanged) != value_digest(bars)


def test_two_columns_that_exchange_their_values_change_it() -> None:
    bars = minute_bars()
    assert value_digest(bars.rename({"high": "low", "low": "high"})) != value_digest(bars)


def test_no_vwap_is_not_a_vwap_of_nothing() -> None:
    bars = minute_bars(no_vwap=[3])
    assert value_digest(bars) != value_digest(bars.with_columns(pl.col("vwap").fill_null(0.0)))


def test_what_is_no_value_stays_out() -> None:
    bars = minute_bars()
    other = bars.with_columns(
        symbol=pl.lit("GBPUSD"), source=pl.lit("live_aggregated"), revision=pl.lit(9, pl.UInt64), origin=pl.lit("x")
    )
    assert value_digest(other) == value_digest(bars)

"""The digest: numpy and ClickHouse agree on every value a bar can hold; ranges do not mix."""

from __future__ import annotations

import math
from datetime import timedelta

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_pipeline.market.bars import BAR_SCHEMA
from market_pipeline.market.digest import MIX, MULTIPLIERS, NULL_VWAP, row_digests, value_digest
from market_pipeline.stores.bars import BarStore, BatchRange
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.migrations import render
from market_pipeline_tests.stores.frames import MINUTE, START, bar, minutes, tombstones

SOURCE = "vendor_historical"
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 5e-324, -1.5, 1e308])

ROWS = st.lists(
    st.tuples(
        st.integers(0, 40),
        *[NUMBERS] * 5,
        st.none() | NUMBERS,
        st.integers(0, 2**32 - 1),
        st.booleans(),
        st.sampled_from([0, 0, 0, 1]),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda row: row[0],
)
NAMES = ("ts", "open", "high", "low", "close", "volume", "vwap", "trades", "complete", "is_deleted")
_runs = iter(range(1_000_000))


def whole(frame: pl.DataFrame, **changed: object) -> BatchRange:
    one = BatchRange(
        frame["symbol"][0], frame["timeframe"][0], frame["source"][0], frame["ts"].min(), frame["ts"].max()
    )
    return one._replace(**changed)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_numpy_and_clickhouse_agree(client: Client, rows: list[tuple[object, ...]]) -> None:
    symbol = f"S{next(_runs)}"
    frame = minutes(len(rows), symbol=symbol).with_columns(
        pl.Series(name, values, dtype=BAR_SCHEMA[name])
        for name, values in zip(
            NAMES, zip(*[(START + row[0] * MINUTE, *row[1:]) for row in rows], strict=True), strict=True
        )
    )
    store = BarStore(client)
    store.insert_frame(frame)
    assert store.series_digests([whole(frame)]) == [(frame.height, value_digest(frame))]
    each = client.frame("SELECT ts, digest FROM bar_digests WHERE symbol = {s:String} ORDER BY ts", {"s": symbol})
    assert each["digest"].to_list() == row_digests(frame.sort("ts")).tolist()


def test_the_view_has_the_constants_of_the_formula() -> None:
    text = "\n".join(statement for migration in render() for statement in migration.statements)
    for constant in (*MULTIPLIERS, MIX, NULL_VWAP):
        assert f"0x{constant:016X}" in text


def test_many_ranges_of_many_series_at_once(client: Client) -> None:
    store = BarStore(client)
    frames = [
        minutes(300, START + i * 300 * MINUTE, symbol=symbol, source=source, seed=i)
        for i in range(5)
        for symbol in ("EURUSD", "BRK.B")
        for source in (SOURCE, "live_aggregated")
    ]
    store.insert_frame(pl.concat(frames))
    ranges = [whole(frame) for frame in frames]
    expected = [(frame.height, value_digest(frame)) for frame in frames]
    assert store.series_digests(ranges) == expected
    assert store.series_digests(ranges[::-1]) == expected[::-1]
    # a hole between two ranges of one series belongs to neither
    assert store.series_digests([ranges[0], ranges[8]]) == [expected[0], expected[8]]
    inner = frames[3][10:20]
    assert store.series_digests([whole(inner)]) == [(10, value_digest(inner))]
    absent = [
        whole(frames[0], symbol="GBPUSD"),
        whole(frames[0], timeframe="5m"),
        whole(frames[0], source="live_gap_filled"),
        whole(frames[0], start_ts=START - timedelta(days=400), end_ts=START - MINUTE),
    ]
    assert store.series_digests(absent) == [(0, 0)] * 4
    mixed = [absent[0], ranges[2], absent[2], ranges[7], absent[1]]
    assert store.series_digests(mixed) == [(0, 0), expected[2], (0, 0), expected[7], (0, 0)]
    assert store.series_digests([]) == []


def test_only_the_last_word_counts_and_tombstones_are_words(client: Client) -> None:
    store = BarStore(client)
    frame = minutes(50, symbol="WORDS")
    store.insert_frame(minutes(50, symbol="WORDS", seed=9, revision=1))
    store.insert_frame(frame)
    assert store.series_digests([whole(frame)]) == [(50, value_digest(frame))]
    gone = tombstones(frame[10:12], revision=1_800_000_000_000)
    store.insert_frame(gone)
    after = pl.concat([frame[:10], gone, frame[12:]])
    left, right = whole(frame[:30]), whole(frame[30:])
    assert store.series_digests([left, right]) == [(30, value_digest(after[:30])), (20, value_digest(frame[30:]))]
    back = frame[10:11].with_columns(pl.lit(1_900_000_000_000, pl.UInt64).alias("revision"))
    store.insert_frame(back)
    after = pl.concat([frame[:11], gone[1:], frame[12:]])
    assert store.series_digests([left]) == [(30, value_digest(after[:30]))]


def test_a_range_of_tombstones_alone_is_not_an_empty_one(client: Client) -> None:
    store = BarStore(client)
    gone = tombstones(bar(symbol="GONE"), revision=5)
    store.insert_frame(gone)
    assert store.series_digests([whole(gone)]) == [(1, value_digest(gone))]


def test_ranges_before_1971_and_far_apart(client: Client) -> None:
    store = BarStore(client)
    old = bar(START.replace(year=1970, month=1, day=1), symbol="OLD")
    new = bar(START.replace(year=2099), symbol="OLD")
    store.insert_frame(pl.concat([old, new]))
    assert store.series_digests([whole(old), whole(new)]) == [(1, value_digest(old)), (1, value_digest(new))]


def test_negative_zero_is_another_value(client: Client) -> None:
    assert value_digest(bar(volume=0.0)) != value_digest(bar(volume=-0.0))
    assert math.copysign(1, bar(volume=-0.0)["volume"][0]) == -1


def test_overlapping_ranges_are_refused(client: Client) -> None:
    one = whole(minutes(10))
    with pytest.raises(ValueError, match="overlap"):
        BarStore(client).series_digests([one, one._replace(start_ts=one.end_ts)])


@pytest.mark.parametrize("symbols", [3, 12])
def test_ranges_of_many_symbols_years_apart(client: Client, symbols: int) -> None:
    store = BarStore(client)
    frames = [
        minutes(20, START + timedelta(days=400 * year + number), symbol=f"FAR{symbols}N{number}", seed=number + year)
        for number in range(symbols)
        for year in range(2)
    ]
    store.insert_frame(pl.concat(frames))
    # what lies between the ranges, and another series at their times, must not be counted
    store.insert_frame(
        pl.concat([bar(START + timedelta(days=200), symbol=f"FAR{symbols}N{n}") for n in range(symbols)])
    )
    store.insert_frame(minutes(20, frames[0]["ts"][0], symbol=frames[0]["symbol"][0], timeframe="5m", seed=99))
    assert store.series_digests([whole(f) for f in frames]) == [(20, value_digest(f)) for f in frames]

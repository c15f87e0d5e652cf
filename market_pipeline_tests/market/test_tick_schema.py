from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from market_pipeline.errors import Terminal
from market_pipeline.market.ticks import (
    TICK_SCHEMA,
    InvalidTicks,
    check_tick_columns,
    empty_ticks,
    quotes_of,
    split_valid_ticks,
    trades_of,
    validate_ticks,
)

TS = datetime(2024, 3, 5, 12, tzinfo=UTC)
QUOTE = {"symbol": "EURUSD", "ts": TS, "kind": "quote", "bid": 1.1, "ask": 1.2, "received_at": TS}
TRADE = {"symbol": "EURUSD", "ts": TS, "kind": "trade", "price": 5.0, "size": 2.0, "received_at": TS}


def ticks(*rows: dict[str, object]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=TICK_SCHEMA)


def test_well_formed_ticks_pass_as_they_are() -> None:
    crossed, negative = QUOTE | {"ask": 1.0}, TRADE | {"price": -37.63, "size": 0.0}
    frame = ticks(QUOTE, QUOTE, TRADE, crossed, negative)
    assert validate_ticks(frame, where="page").equals(frame)
    good, bad = split_valid_ticks(frame)
    assert good.equals(frame)
    assert bad.is_empty()
    assert quotes_of(frame).height == 3
    assert trades_of(frame)["price"].to_list() == [5.0, -37.63]
    assert validate_ticks(empty_ticks(), where="page").schema == TICK_SCHEMA


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (QUOTE | {"symbol": None}, "symbol: null"),
        (QUOTE | {"symbol": ""}, "symbol: empty"),
        (QUOTE | {"ts": None}, "ts: null"),
        (QUOTE | {"received_at": None}, "received_at: null"),
        (QUOTE | {"kind": None}, "kind: null"),
        (QUOTE | {"kind": "bar"}, "kind: neither quote nor trade"),
        (QUOTE | {"bid": None}, "bid: null"),
        (QUOTE | {"ask": float("nan")}, "ask: not a finite number"),
        (TRADE | {"price": None}, "price: null"),
        (TRADE | {"size": None}, "size: null"),
        (TRADE | {"price": float("inf")}, "price: not a finite number"),
        (TRADE | {"size": -1.0}, "size: negative"),
        (TRADE | {"exchange": "a\0"}, "exchange: holds a NUL"),
    ],
)
def test_malformed_rows_are_named_and_split_off(row: dict[str, object], reason: str) -> None:
    frame = ticks(QUOTE, row, TRADE)
    good, bad = split_valid_ticks(frame)
    assert good.equals(ticks(QUOTE, TRADE))
    assert bad["reason"].to_list() == [reason]
    with pytest.raises(InvalidTicks, match=f"^page: {reason}: .*1 of 3 rows") as raised:
        validate_ticks(frame, where="page")
    assert isinstance(raised.value, Terminal)


def test_columns() -> None:
    few = ticks(QUOTE).select(
        "ts", "received_at", "symbol", "kind", "bid", pl.lit(None).alias("price"), ask=pl.lit(1.2)
    )
    assert check_tick_columns(few, where="page").equals(ticks(QUOTE))
    with pytest.raises(
        InvalidTicks, match=r"page: no column symbol; ts: is Datetime.*us.*; bid: is Float32, not Float64"
    ):
        check_tick_columns(
            few.drop("symbol").with_columns(pl.col("ts").dt.cast_time_unit("us"), pl.col("bid").cast(pl.Float32)),
            where="page",
        )

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from market_pipeline.errors import Terminal, UnreadableBatch
from market_pipeline.market.ticks import (
    STORED_TICK_SCHEMA,
    TICK_SCHEMA,
    InvalidTicks,
    check_tick_columns,
    empty_ticks,
    quotes_of,
    split_valid_ticks,
    trades_of,
    validate_ticks,
)
from market_pipeline.tick_payload import decode_ticks, encode_ticks

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


def test_a_payload_gives_back_the_ticks_numbered() -> None:
    frame = ticks(QUOTE | {"bid": 1 / 3, "exchange": "4"}, TRADE | {"conditions": "1,2"}, QUOTE | {"exchange": ""})
    decoded = decode_ticks(encode_ticks(frame, 2**63 - 1))
    assert decoded.schema == STORED_TICK_SCHEMA
    assert decoded.select(list(TICK_SCHEMA)).rows() == frame.rows()
    assert decoded["n"].to_list() == [0, 1, 2]
    assert decoded["batch_id"].unique().to_list() == [2**63 - 1]
    # numbers that a frame brings are not believed: a slice of a decoded batch is a batch of its own
    assert decode_ticks(encode_ticks(decoded.slice(1), 7))["n"].to_list() == [0, 1]
    heartbeat = decode_ticks(encode_ticks(empty_ticks(), 7))
    assert (heartbeat.schema, heartbeat.height) == (STORED_TICK_SCHEMA, 0)


def test_what_is_no_payload() -> None:
    payload = encode_ticks(ticks(QUOTE), 7)
    other = pl.DataFrame({"a": [1]}).write_ipc_stream(None).getvalue()
    for broken in (b"", b"no arrow", payload[: len(payload) // 2], other):
        with pytest.raises(UnreadableBatch, match="not an Arrow stream of ticks") as raised:
            decode_ticks(broken)
        assert raised.value.reason == "unreadable_payload"
    with pytest.raises(InvalidTicks, match="one symbol"):
        encode_ticks(ticks(QUOTE, QUOTE | {"symbol": "GBPUSD"}), 7)


def test_a_foreign_payload_with_wider_types_is_read() -> None:
    decoded = decode_ticks(encode_ticks(ticks(QUOTE, TRADE), 7))
    foreign = decoded.select(reversed(decoded.columns)).with_columns(pl.col("n").cast(pl.Int64), extra=1)
    payload = foreign.write_ipc_stream(None, compat_level=pl.CompatLevel.oldest()).getvalue()
    assert decode_ticks(payload).equals(decoded)

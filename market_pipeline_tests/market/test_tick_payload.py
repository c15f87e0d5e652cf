"""The payload of tick batches: small, exact, and refused whole when a single bit of it is wrong."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from market_pipeline.errors import UnreadableBatch
from market_pipeline.market.tick_arrays import TickArrays
from market_pipeline.market.ticks import STORED_TICK_SCHEMA, TICK_SCHEMA, InvalidTicks, empty_ticks
from market_pipeline.tick_payload import MAX_ROWS, decode_columns, decode_ticks, encode_columns, encode_ticks

TS = datetime(2024, 3, 5, 12, tzinfo=UTC)
QUOTE = {"symbol": "EURUSD", "ts": TS, "kind": "quote", "bid": 1.1, "ask": 1.2, "received_at": TS}
TRADE = {"symbol": "EURUSD", "ts": TS, "kind": "trade", "price": 5.0, "size": 2.0, "received_at": TS}


def ticks(*rows: dict[str, object]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=TICK_SCHEMA)


def quotes(count: int) -> pl.DataFrame:
    """Return quotes such as a busy stream brings, received some milliseconds after their time."""
    rng = random.Random(count)
    rows = []
    for number in range(count):
        bid = rng.randrange(108_000, 109_000) / 1e5
        at = TS + timedelta(milliseconds=number)
        late = timedelta(milliseconds=rng.randrange(3, 40))
        rows.append(QUOTE | {"ts": at, "bid": bid, "ask": bid + 1e-5, "exchange": "48", "received_at": at + late})
    return ticks(*rows)


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


texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
numbers = st.none() | st.floats()  # every double, NaN, infinities and -0.0 too
moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(
    lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000, tzinfo=UTC)
)
near = st.integers(0, 300).map(lambda ms: TS + timedelta(milliseconds=ms))
rows = st.fixed_dictionaries(
    {
        "ts": near | moments,
        "kind": st.sampled_from(["quote", "trade", "else", None]),
        "bid": numbers,
        "ask": numbers,
        "price": numbers,
        "size": numbers,
        "exchange": texts,
        "conditions": texts,
        "received_at": near | moments,
    }
)


@given(st.text(max_size=20), st.integers(1, 2**63 - 1), st.lists(rows, max_size=40))
@settings(max_examples=200)
def test_whatever_goes_in_comes_out(symbol: str, batch_id: int, values: list[dict[str, Any]]) -> None:
    frame = ticks(*({"symbol": symbol, **row} for row in values))
    payload = encode_ticks(frame, batch_id)
    decoded = decode_ticks(payload)
    assert_frame_equal(decoded.select(list(TICK_SCHEMA)), frame, check_exact=True)
    assert decoded.schema == STORED_TICK_SCHEMA
    arrays, of_frame = decode_columns(payload).arrays(), TickArrays.of(decoded)
    for name in TickArrays.__slots__:
        assert getattr(arrays, name).tobytes() == getattr(of_frame, name).tobytes(), name


@pytest.mark.parametrize(("rows", "bytes_a_tick"), [(1, 120), (8, 35), (256, 22)])
def test_small_batches_are_small(rows: int, bytes_a_tick: int) -> None:
    assert len(encode_ticks(quotes(rows), 2**62)) / rows <= bytes_a_tick


def test_many_distinct_texts() -> None:
    rows = [TRADE | {"conditions": None if number % 7 == 0 else str(number)} for number in range(70_000)]
    for count in (255, 300, 70_000):
        frame = ticks(*rows[:count])
        assert decode_ticks(encode_ticks(frame, 7)).select(list(TICK_SCHEMA)).equals(frame)


MIXED = encode_ticks(
    pl.concat([quotes(9), ticks(TRADE | {"conditions": "1,2"}, TRADE | {"exchange": "x", "ts": TS - timedelta(1)})]), 7
)


def refused(payload: bytes) -> None:
    with pytest.raises(UnreadableBatch) as raised:
        decode_ticks(payload)
    assert raised.value.reason == "unreadable_payload"


def test_a_cut_payload_is_refused_wherever_it_is_cut() -> None:
    for length in range(len(MIXED)):
        refused(MIXED[:length])
    refused(MIXED + b"\0")


def test_every_flipped_bit_is_noticed() -> None:
    for place in range(len(MIXED) * 8):
        damaged = bytearray(MIXED)
        damaged[place // 8] ^= 1 << place % 8
        refused(bytes(damaged))


@given(st.binary(max_size=200))
@example(b"")
@example(b"TKS2")
@example(pl.DataFrame({"a": [1]}).write_ipc_stream(None).getvalue())
def test_what_is_no_payload_is_refused(payload: bytes) -> None:
    refused(payload)


@given(st.data())
@settings(max_examples=1000)
def test_damage_under_a_right_checksum_is_ticks_or_refused(data: st.DataObject) -> None:
    """A foreign producer may be wrong and sure of it: whatever it says, there is a frame or an UnreadableBatch."""
    body = bytearray(MIXED[8:])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.sampled_from([len(body), len(body), data.draw(st.integers(0, len(body)))]))]
    body += data.draw(st.binary(max_size=20))
    try:
        frame = decode_ticks(b"TKS2" + crc32(body).to_bytes(4, "little") + bytes(body))
    except UnreadableBatch:
        return
    assert frame.schema == STORED_TICK_SCHEMA
    assert len(frame.rows()) == frame.height <= MAX_ROWS, "every value can be had"


def test_what_fits_into_no_batch_is_said() -> None:
    with pytest.raises(InvalidTicks, match="one symbol"):
        encode_ticks(ticks(QUOTE, QUOTE | {"symbol": "GBPUSD"}), 7)
    with pytest.raises(InvalidTicks, match="symbol: null"):
        encode_ticks(ticks(QUOTE | {"symbol": None}), 7)
    for name in ("ts", "received_at"):
        for wrong in (ticks(QUOTE, QUOTE | {name: None}), ticks(QUOTE | {name: None})):
            with pytest.raises(InvalidTicks, match=f"{name}: null"):
                encode_ticks(wrong, 7)
    columns = dict.fromkeys(("kind", "exchange", "conditions", "bid", "ask", "price", "size"), (None,))
    with pytest.raises(InvalidTicks, match="is no time"):
        encode_columns("A", 7, {"ts": (10**18,), "received_at": (0,), **columns})
    with pytest.raises(InvalidTicks, match="layout"):
        encode_columns("A", 7, {"ts": (0,), "received_at": (0,), **columns, "exchange": ("x" * 70_000,)})

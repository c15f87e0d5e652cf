"""The bytes of a binary COPY, read by a parser written from PostgreSQL's manual."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.market.ticks import STORED_TICK_SCHEMA
from market_pipeline.stores.ticks.copy_format import COLUMNS, encode_rows

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

times = st.datetimes(datetime(1970, 1, 1), datetime(2090, 1, 1)).map(
    lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000, tzinfo=UTC)
)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=4)
ticks = st.tuples(
    texts,
    times,
    st.sampled_from(("quote", "trade")),
    *(numbers,) * 4,
    st.none() | texts,
    st.none() | texts,
    times,
    st.integers(1, 2**63 - 1),
    st.integers(0, 2**31 - 1),
)


def parsed(data: bytes) -> list[dict[str, object]]:
    """Read a header, rows of (number of fields, (length, bytes)...), and the end mark."""
    assert data[:11] == b"PGCOPY\n\xff\r\n\0"
    assert data[11:19] == bytes(8)
    rows, at = [], 19
    while (fields := struct.unpack_from(">h", data, at)[0]) != -1:
        at += 2
        assert fields == len(COLUMNS)
        row: dict[str, object] = {}
        for name in COLUMNS:
            (length,) = struct.unpack_from(">i", data, at)
            at += 4
            raw = None if length == -1 else data[at : at + length]
            at += max(length, 0)
            row[name] = None if raw is None else value(name, raw)
        rows.append(row)
    assert at + 2 == len(data)
    return rows


def value(name: str, raw: bytes) -> object:
    match name:
        case "ts" | "received_at":
            return EPOCH + timedelta(microseconds=struct.unpack(">q", raw)[0])
        case "batch_id":
            return struct.unpack(">q", raw)[0]
        case "n":
            return struct.unpack(">i", raw)[0]
        case "bid" | "ask" | "price" | "size":
            return struct.unpack(">d", raw)[0]
        case "kind":
            return {b"q": "quote", b"t": "trade"}[raw]
    return raw.decode()


@given(st.lists(ticks, max_size=30))
def test_every_value_is_written_once(rows: list[tuple[object, ...]]) -> None:
    frame = pl.DataFrame(rows, schema=STORED_TICK_SCHEMA, orient="row")
    written = Counter(shown(row[name] for name in STORED_TICK_SCHEMA) for row in parsed(encode_rows(frame)))
    assert written == Counter(map(shown, frame.rows()))


def shown(row: Iterable[object]) -> str:
    """Tell -0.0 from 0.0, and no name of UTC from another."""
    return repr([value.isoformat() if isinstance(value, datetime) else value for value in row])


def test_rows_of_one_shape_keep_their_order() -> None:
    row = ("EURUSD", EPOCH, "quote", 1.0, 1.1, None, None, None, None, EPOCH, 7)
    frame = pl.DataFrame([(*row, n) for n in (5, 3, 9)], schema=STORED_TICK_SCHEMA, orient="row")
    assert [each["n"] for each in parsed(encode_rows(frame))] == [5, 3, 9]

"""The payload of a tick batch: ticks of one symbol as columns, in a layout of its own.

It lies outside the rooms because the collector and the bus encode it and the tick store and the aggregator decode it.

Live batches are small and many: a few ticks each, hundreds a second. Arrow IPC costs 2.6 KB and 0.3 ms before the first
tick, since each message repeats the schema; this costs about 50 bytes, then 18 a quote, and a tenth of the time.

Layout, little-endian: `TKS2`, CRC-32 of all that follows, batch id (u64), rows (u32), the symbol (u16 length, UTF-8),
then the columns ts, received_at, kind, exchange, conditions, bid, ask, price and size. Each begins with a tag:

- a time (epoch ms): the width w in bytes (0, 1, 2, 4 or 8), the earliest (i64), and of each row the ms after it;
- a text: 0 all null, 1 one text for all rows, else 1 more than the width of a code (1, 2 or 4 bytes): then the number
  of texts (u32), the texts (u16 length, UTF-8), and of each row its code, 0 for null;
- a number: 0 all null, 1 none null, 2 some: then a bit a row, set where there is one, first row in the highest bit. The
  numbers that there are follow as f64.

`n`, the place of a row in its batch, is its place. A batch without rows is a heartbeat.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_pipeline.errors import UnreadableBatch
from market_pipeline.market.tick_arrays import Floats, Ints
from market_pipeline.market.ticks import InvalidTicks, check_tick_columns
from market_pipeline.tick_columns import NUMBERS, TEXTS, TIMES, Text, TickColumns

UNREADABLE = "unreadable_payload"
# Far more than a batch has: a few bytes must not ask for gigabytes.
MAX_ROWS = 1 << 20

_MAGIC = b"TKS2"
_HEAD = struct.Struct("<4sI")
_BATCH = struct.Struct("<QIH")
_TIME = struct.Struct("<Bq")
_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<H")
_WIDTHS: dict[int, str] = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}
_ALL_NULL, _WHOLE, _SOME = 0, 1, 2
_ONE_TEXT = 1
# What a datetime can be: the years 1 to 9999.
_EARLIEST_MS, _LATEST_MS = -62_135_596_800_000, 253_402_300_799_999


def encode_ticks(frame: pl.DataFrame, batch_id: int) -> bytes:
    """Encode ticks of one symbol (TICK_SCHEMA; absent optional columns are null) as one payload.

    `batch_id` and `n`, the row's place in the frame, are filled in. Values are not judged, but for times, which must
    be there: `validate_ticks` does that where ticks enter.

    Raises:
        InvalidTicks: a column is missing or of another dtype, a time or the symbol is null, the rows are of more than
            one symbol or more than MAX_ROWS.
    """
    frame = check_tick_columns(frame, where=f"batch {batch_id}")
    symbols = frame.get_column("symbol").unique().to_list()
    if len(symbols) > 1:
        raise InvalidTicks(f"batch {batch_id}: symbol: a batch holds ticks of one symbol")
    if symbols == [None]:
        raise InvalidTicks(f"batch {batch_id}: symbol: null")
    columns = {name: frame.get_column(name).to_list() for name in (*TEXTS, *NUMBERS)}
    columns |= {name: frame.get_column(name).to_physical().to_list() for name in TIMES}
    return encode_columns(symbols[0] if symbols else "", batch_id, columns)


def encode_columns(symbol: str, batch_id: int, columns: Mapping[str, Sequence[Any]]) -> bytes:
    """Encode ticks of one symbol, given as columns of plain values (times as epoch ms, None for null).

    Raises:
        InvalidTicks: a time is null, a text is longer than 65,535 bytes, or there are more than MAX_ROWS.
    """
    rows = len(columns["ts"])
    if rows > MAX_ROWS:
        raise InvalidTicks(f"batch {batch_id}: {rows} ticks, at most {MAX_ROWS} go into one")
    name = symbol.encode()
    try:
        parts = [_BATCH.pack(batch_id, rows, len(name)), name]
        for column in TIMES:
            _put_time(parts, column, columns[column])
        for column in TEXTS:
            _put_text(parts, columns[column])
        for column in NUMBERS:
            _put_number(parts, columns[column])
    except struct.error as error:
        raise InvalidTicks(f"batch {batch_id}: does not fit into the layout: {error}") from error
    body = b"".join(parts)
    return _HEAD.pack(_MAGIC, crc32(body)) + body


def decode_ticks(payload: bytes) -> pl.DataFrame:
    """Decode a tick payload to a frame with the columns and dtypes of STORED_TICK_SCHEMA, in the order of arrival.

    Raises:
        UnreadableBatch: the bytes are no payload, or damaged (reason `unreadable_payload`).
    """
    return decode_columns(payload).frame()


def decode_columns(payload: bytes) -> TickColumns:
    """Decode a tick payload to its columns: what is many times as fast as a frame, for a few ticks at a time.

    Raises:
        UnreadableBatch: as `decode_ticks`.
    """
    try:
        return _decoded(payload)
    except (struct.error, ValueError, LookupError, OverflowError, MemoryError) as error:
        raise _unreadable(str(error) or type(error).__name__) from error


def _decoded(payload: bytes) -> TickColumns:
    magic, check = _HEAD.unpack_from(payload)
    if magic != _MAGIC:
        raise ValueError("it begins otherwise")
    body = memoryview(payload)[_HEAD.size :]
    if crc32(body) != check:
        raise ValueError("its checksum is another")
    batch_id, rows, length = _BATCH.unpack_from(body)
    if rows > MAX_ROWS:
        raise ValueError(f"it says {rows} rows")
    take = _Cursor(body, _BATCH.size)
    symbol = take.text(length)
    times = {name: take.time(rows) for name in TIMES}
    texts = {name: take.texts(rows) for name in TEXTS}
    numbers: dict[str, Floats] = {}
    valid: dict[str, NDArray[np.bool_] | None] = {}
    for name in NUMBERS:
        if (found := take.number(rows)) is not None:
            numbers[name], valid[name] = found
    if take.at != len(body):
        raise ValueError(f"{len(body) - take.at} bytes are left over")
    return TickColumns(symbol, batch_id, rows, times, texts, numbers, valid)


class _Cursor:
    """Read one thing after the other; raises what `decode_columns` catches where the bytes end too early."""

    __slots__ = ("_body", "at")

    def __init__(self, body: memoryview, at: int) -> None:
        self._body, self.at = body, at

    def text(self, length: int) -> str:
        return _text(bytes(self._bytes(length)))

    def time(self, rows: int) -> Ints:
        width, earliest = _TIME.unpack(self._bytes(_TIME.size))
        if not width:
            values = np.full(rows, earliest, np.int64)
            latest = earliest
        else:
            offsets = self._array(_WIDTHS[width], rows)
            latest = earliest + (int(offsets.max()) if rows else 0)
            values = offsets.astype(np.int64) + earliest
        if not _EARLIEST_MS <= earliest <= latest <= _LATEST_MS:
            raise ValueError(f"a time of {earliest} … {latest} ms")
        return values

    def texts(self, rows: int) -> tuple[Text, NDArray[Any] | None]:
        tag = self._bytes(1)[0]
        if tag == _ALL_NULL:
            return (None,), None
        if tag == _ONE_TEXT:
            return (self._next_text(),), None
        (count,) = _COUNT.unpack(self._bytes(_COUNT.size))
        if count > rows:
            raise ValueError(f"{count} texts in {rows} rows")
        texts = (None, *(self._next_text() for _ in range(count)))
        codes = self._array(_WIDTHS[tag - 1], rows)
        if rows and int(codes.max()) > count:
            raise ValueError("a code without a text")
        return texts, codes

    def number(self, rows: int) -> tuple[Floats, NDArray[np.bool_] | None] | None:
        tag = self._bytes(1)[0]
        if tag == _ALL_NULL:
            return None
        if tag == _WHOLE:
            return self._array("<f8", rows), None
        if tag != _SOME:
            raise ValueError(f"a number of kind {tag}")
        valid = np.unpackbits(self._array("<u1", (rows + 7) // 8), count=rows).astype(bool)
        values = np.full(rows, np.nan)
        values[valid] = self._array("<f8", int(np.count_nonzero(valid)))
        return values, valid

    def _next_text(self) -> str:
        (length,) = _LENGTH.unpack(self._bytes(_LENGTH.size))
        return self.text(length)

    def _array(self, dtype: str, count: int) -> NDArray[Any]:
        array = np.frombuffer(self._body, dtype, count, self.at) if count else np.empty(0, dtype)
        self.at += array.nbytes
        return array

    def _bytes(self, length: int) -> memoryview:
        found = self._body[self.at : self.at + length]
        if len(found) < length:
            raise ValueError("it ends too early")
        self.at += length
        return found


@lru_cache(maxsize=4096)
def _text(raw: bytes) -> str:
    return raw.decode()


def _put_time(parts: list[bytes], name: str, values: Sequence[Any]) -> None:
    if not values:
        parts.append(_TIME.pack(0, 0))
        return
    try:
        earliest, latest = min(values), max(values)
    except TypeError:
        raise InvalidTicks(f"{name}: null") from None
    if earliest is None:
        raise InvalidTicks(f"{name}: null")
    if not _EARLIEST_MS <= earliest <= latest <= _LATEST_MS:
        raise InvalidTicks(f"{name}: {earliest} … {latest} ms is no time")
    span = latest - earliest
    width = 0 if not span else 1 if span < 1 << 8 else 2 if span < 1 << 16 else 4 if span < 1 << 32 else 8
    parts.append(_TIME.pack(width, earliest))
    if width:
        parts.append((np.array(values, np.int64) - earliest).astype(_WIDTHS[width]).tobytes())


def _put_text(parts: list[bytes], values: Sequence[str | None]) -> None:
    distinct = dict.fromkeys(values)
    if len(distinct) <= 1:
        one = next(iter(distinct), None)
        parts.append(bytes([_ALL_NULL if one is None else _ONE_TEXT]))
        if one is not None:
            _put_one(parts, one)
        return
    texts = [text for text in distinct if text is not None]
    width = 1 if len(texts) < 1 << 8 else 2 if len(texts) < 1 << 16 else 4
    codes: dict[str | None, int] = {text: place for place, text in enumerate(texts, 1)}
    codes[None] = 0
    parts.append(bytes([width + 1]) + _COUNT.pack(len(texts)))
    for text in texts:
        _put_one(parts, text)
    parts.append(np.array([codes[value] for value in values], _WIDTHS[width]).tobytes())


def _put_one(parts: list[bytes], text: str) -> None:
    raw = text.encode()
    parts += (_LENGTH.pack(len(raw)), raw)


def _put_number(parts: list[bytes], values: Sequence[float | None]) -> None:
    nulls = values.count(None)
    if nulls == len(values):
        parts.append(bytes([_ALL_NULL]))
    elif not nulls:
        parts += (bytes([_WHOLE]), np.array(values, "<f8").tobytes())
    else:
        valid = np.array([value is not None for value in values])
        there = [value for value in values if value is not None]
        parts += (bytes([_SOME]), np.packbits(valid).tobytes(), np.array(there, "<f8").tobytes())


def _unreadable(why: str) -> UnreadableBatch:
    return UnreadableBatch(f"the payload is no batch of ticks: {why}", reason=UNREADABLE)

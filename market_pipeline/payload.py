"""The payload of a batch: a frame of bars as an Arrow IPC stream that every reader of ours takes.

It lies outside the rooms because the bus encodes it and the store splices and posts it, and neither imports the other.

Layout: the columns of BAR_SCHEMA in order, then `batch_id`; buffers compressed with lz4; one record batch a payload.
`timeframe`, `source` and `origin` are dictionaries over fixed lists, the same in every payload; `symbol` is plain
text. So no dictionary ever changes between two payloads, and their record batches can stand behind one schema:
ClickHouse servers have loaded a dictionary only once a stream and then given the wrong values without a word
(ClickHouse issue 55490).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc

from market_pipeline.errors import InvalidBars, UnreadableBatch
from market_pipeline.market.bars import BAR_SCHEMA, SOURCES
from market_pipeline.market.timeframes import TIMEFRAMES

BATCH_SCHEMA = pl.Schema([*BAR_SCHEMA.items(), ("batch_id", pl.UInt64())])
DICTIONARIES: dict[str, tuple[str, ...]] = {
    "timeframe": tuple(TIMEFRAMES),
    "source": SOURCES,
    "origin": ("", *SOURCES),
}
UNREADABLE = "unreadable_payload"
_UNREADABLE = (pa.ArrowException, ValueError, KeyError, TypeError, OSError)

_PLAIN_TYPES: dict[pl.DataType | type[pl.DataType], pa.DataType] = {
    pl.String: pa.string(),
    pl.Datetime("ms", "UTC"): pa.timestamp("ms", "UTC"),
    pl.Float64: pa.float64(),
    pl.UInt32: pa.uint32(),
    pl.UInt64: pa.uint64(),
    pl.UInt8: pa.uint8(),
    pl.Boolean: pa.bool_(),
}
_INDEX = pa.int8()
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")
# The same bytes; but for the few rows of a live flush a pool of threads costs as much again as all the rest.
_TS_OPTIONS = pa.ipc.IpcReadOptions(included_fields=[list(BATCH_SCHEMA).index("ts")], use_threads=False)
_SMALL_ROWS, _SMALL_OPTIONS = 1024, pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)


@cache
def arrow_schema() -> pa.Schema:
    """Return the Arrow schema of every payload: BAR_SCHEMA's columns, then `batch_id` (uint64)."""
    return pa.schema(
        [
            pa.field(name, pa.dictionary(_INDEX, pa.string()) if name in DICTIONARIES else _PLAIN_TYPES[dtype])
            for name, dtype in BATCH_SCHEMA.items()
        ]
    )


def encode(frame: pl.DataFrame) -> bytes:
    """Encode bars with `batch_id` (columns and dtypes of BATCH_SCHEMA) as one Arrow IPC stream.

    Raises:
        InvalidBars: a column is missing or of another dtype, or a timeframe, source or origin is none of ours.
    """
    columns = [_column(frame, name, dtype) for name, dtype in BATCH_SCHEMA.items()]
    sink = pa.BufferOutputStream()
    options = _SMALL_OPTIONS if frame.height < _SMALL_ROWS else _OPTIONS
    with pa.ipc.new_stream(sink, arrow_schema(), options=options) as writer:
        writer.write_batch(pa.record_batch(columns, schema=arrow_schema()))
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def decode(payload: bytes) -> pl.DataFrame:
    """Decode an Arrow IPC stream to a frame with the columns and dtypes of BATCH_SCHEMA; text comes as String.

    Payloads of foreign producers pass as well when every column is there and casts without loss.

    Raises:
        UnreadableBatch: the bytes are no Arrow stream of bars (reason `unreadable_payload`).
    """
    return _frame([_read(payload)])


def ts_span(payload: bytes) -> tuple[int, int] | None:
    """Return the first and last ts (epoch ms) of a payload; None where only `decode` can tell, as of foreign encodings.

    Reads that column and nothing else: 17,000 rows take a fifteenth of the time of `decode`.
    """
    first, last = [], []
    try:
        with pa.ipc.open_stream(payload, options=_TS_OPTIONS) as reader:
            if reader.schema != _ts_schema():
                return None
            for batch in reader:
                if batch.num_rows == 0:
                    continue
                if batch.column(0).null_count:
                    return None
                ts = batch.column(0).to_numpy(zero_copy_only=False).view(np.int64)
                first.append(int(ts.min()))
                last.append(int(ts.max()))
    except _UNREADABLE:
        return None
    return (min(first), max(last)) if first else None


def decode_all(payloads: Sequence[bytes]) -> tuple[pl.DataFrame, dict[int, int]]:
    """Decode what can be decoded into one frame as `decode` returns it, its rows in the order of the payloads.

    Returns the frame, and the number of rows by place of the payload; one that is no Arrow stream of bars has no place.
    """
    tables: dict[int, pa.Table] = {}
    for place, payload in enumerate(payloads):
        try:
            tables[place] = _read(payload)
        except UnreadableBatch:
            continue
    try:
        frame = _frame(list(tables.values()))
    except UnreadableBatch:  # one of them spoils all
        frames = {}
        for place, table in tables.items():
            try:
                frames[place] = _frame([table])
            except UnreadableBatch:
                continue
        frame = pl.concat([_frame([]), *frames.values()])
        return frame, {place: one.height for place, one in frames.items()}
    return frame, {place: table.num_rows for place, table in tables.items()}


def _read(payload: bytes) -> pa.Table:
    """Read the columns of a payload, unproven."""
    try:
        with pa.ipc.open_stream(payload) as reader:
            table = reader.read_all()
        if table.schema != arrow_schema():  # of a foreign producer
            table.validate(full=True)
            table = table.select(list(BATCH_SCHEMA)).cast(_plain_schema()).cast(arrow_schema())
    except _UNREADABLE as error:
        raise _unreadable(error) from error
    return table


def _frame(tables: Sequence[pa.Table]) -> pl.DataFrame:
    try:
        table = pa.concat_tables(tables) if tables else arrow_schema().empty_table()
        table.validate(full=True)  # indices outside a dictionary and broken text would crash the process later
        table = table.cast(_plain_schema())
    except _UNREADABLE as error:
        raise _unreadable(error) from error
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _unreadable(error: BaseException) -> UnreadableBatch:
    return UnreadableBatch(f"the payload is not an Arrow stream of bars: {error}", reason=UNREADABLE)


@cache
def _plain_schema() -> pa.Schema:
    return pa.schema([pa.field(name, _PLAIN_TYPES[dtype]) for name, dtype in BATCH_SCHEMA.items()])


@cache
def _ts_schema() -> pa.Schema:
    return pa.schema([arrow_schema().field("ts")])


@cache
def _dictionary(name: str) -> tuple[pl.Enum, pa.Array]:
    return pl.Enum(DICTIONARIES[name]), pa.array(DICTIONARIES[name], pa.string())


def _column(frame: pl.DataFrame, name: str, dtype: pl.DataType) -> pa.Array:
    try:
        series = frame.get_column(name)
    except pl.exceptions.ColumnNotFoundError:
        raise InvalidBars(f"{name}: the column is missing") from None
    if series.dtype != dtype:
        raise InvalidBars(f"{name}: is {series.dtype}, must be {dtype}")
    if name not in DICTIONARIES:
        array = series.rechunk().to_arrow()
        return array if array.type == _PLAIN_TYPES[dtype] else array.cast(_PLAIN_TYPES[dtype])
    enum, values = _dictionary(name)
    try:
        codes = series.cast(enum).to_physical()
    except pl.exceptions.InvalidOperationError:
        wrong = series.filter(~series.is_in(list(DICTIONARIES[name])))[0]
        raise InvalidBars(f"{name}: {wrong!r} is none of {', '.join(map(repr, DICTIONARIES[name]))}") from None
    if codes.null_count():
        raise InvalidBars(f"{name}: is null")
    return pa.DictionaryArray.from_arrays(pa.array(codes.to_numpy().astype(np.int8), _INDEX), values)

"""The payload of a tick batch: ticks of one symbol as an Arrow IPC stream.

It lies outside the rooms because the collector and the bus encode it and the tick store and the aggregator decode it.

Layout: the columns of STORED_TICK_SCHEMA in order (`n` is the place in the batch, from 0, in the order of arrival);
plain types, no dictionaries; buffers compressed with lz4; one record batch. A batch without rows is a heartbeat.
"""

from __future__ import annotations

from functools import cache

import polars as pl
import pyarrow as pa
import pyarrow.ipc

from market_pipeline.errors import UnreadableBatch
from market_pipeline.market.ticks import STORED_TICK_SCHEMA, InvalidTicks, check_tick_columns

UNREADABLE = "unreadable_payload"

_TYPES: dict[pl.DataType | type[pl.DataType], pa.DataType] = {
    pl.String: pa.string(),
    pl.Datetime("ms", "UTC"): pa.timestamp("ms", "UTC"),
    pl.Float64: pa.float64(),
    pl.UInt32: pa.uint32(),
    pl.UInt64: pa.uint64(),
}
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


@cache
def tick_arrow_schema() -> pa.Schema:
    """Return the Arrow schema of every tick payload."""
    return pa.schema([pa.field(name, _TYPES[dtype]) for name, dtype in STORED_TICK_SCHEMA.items()])


def encode_ticks(frame: pl.DataFrame, batch_id: int) -> bytes:
    """Encode ticks of one symbol (TICK_SCHEMA; absent optional columns are null) as one Arrow IPC stream.

    `batch_id` and `n`, the row's place in the frame, are filled in. Values are not judged: `validate_ticks` does that
    where ticks enter.

    Raises:
        InvalidTicks: a column is missing or of another dtype, or the rows are of more than one symbol.
    """
    frame = check_tick_columns(frame, where=f"batch {batch_id}")
    if frame.get_column("symbol").n_unique() > 1:
        raise InvalidTicks(f"batch {batch_id}: symbol: a batch holds ticks of one symbol")
    numbered = frame.with_columns(
        pl.lit(batch_id, pl.UInt64).alias("batch_id"), pl.int_range(pl.len(), dtype=pl.UInt32).alias("n")
    )
    schema = tick_arrow_schema()
    columns = [
        array if array.type == field.type else array.cast(field.type)
        for array, field in ((numbered.get_column(field.name).rechunk().to_arrow(), field) for field in schema)
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=_OPTIONS) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def decode_ticks(payload: bytes) -> pl.DataFrame:
    """Decode a tick payload to a frame with the columns and dtypes of STORED_TICK_SCHEMA, in the order of arrival.

    Payloads of foreign producers pass as well when every column is there and casts without loss.

    Raises:
        UnreadableBatch: the bytes are no Arrow stream of ticks (reason `unreadable_payload`).
    """
    try:
        with pa.ipc.open_stream(payload) as reader:
            table = reader.read_all()
        table.validate(full=True)  # broken text would crash the process later
        if table.schema != tick_arrow_schema():
            table = table.select(list(STORED_TICK_SCHEMA)).cast(tick_arrow_schema())
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError) as error:
        raise UnreadableBatch(f"the payload is not an Arrow stream of ticks: {error}", reason=UNREADABLE) from error
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame

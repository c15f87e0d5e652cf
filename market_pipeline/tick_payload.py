"""The payload of a tick batch: ticks of one symbol as an Arrow IPC stream.

It lies outside the rooms because the collector and the bus encode it and the tick store and the aggregator decode it.

Layout: the columns of STORED_TICK_SCHEMA in order (`n` is the place in the batch, from 0, in the order of arrival);
plain types, no dictionaries; buffers compressed with lz4; one record batch. A batch without rows is a heartbeat.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc

from market_pipeline.errors import UnreadableBatch
from market_pipeline.market.ticks import STORED_TICK_SCHEMA, InvalidTicks, check_tick_columns

UNREADABLE = "unreadable_payload"

_TYPES: dict[pl.DataType | type[pl.DataType], pa.DataType] = {
    pl.String: pa.large_string(),
    pl.Datetime("ms", "UTC"): pa.timestamp("ms", "UTC"),
    pl.Float64: pa.float64(),
    pl.UInt32: pa.uint32(),
    pl.UInt64: pa.uint64(),
}


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
    # hstack: batches are small and many, and a lazy expression costs ten times as much as their rows
    numbered = frame.rechunk().hstack(
        [
            pl.Series("batch_id", np.full(frame.height, batch_id, np.uint64)),
            pl.Series("n", np.arange(frame.height, dtype=np.uint32)),
        ]
    )
    sink = io.BytesIO()
    numbered.write_ipc_stream(sink, compression="lz4", compat_level=pl.CompatLevel.oldest())
    return sink.getvalue()


def decode_ticks(payload: bytes) -> pl.DataFrame:
    """Decode a tick payload to a frame with the columns and dtypes of STORED_TICK_SCHEMA, in the order of arrival.

    Payloads of foreign producers pass as well when every column is there and casts without loss.

    Raises:
        UnreadableBatch: the bytes are no Arrow stream of ticks (reason `unreadable_payload`).
    """
    try:
        # by Arrow's own reader: that of polars ends in a panic on some damaged payloads
        # One small record batch: a thread pool costs more than it reads.
        with pa.ipc.open_stream(payload, options=pa.ipc.IpcReadOptions(use_threads=False)) as reader:
            table = reader.read_all()
        table.validate(full=True)  # broken text would crash the process later
        if table.schema != tick_arrow_schema():
            table = table.select(list(STORED_TICK_SCHEMA)).cast(tick_arrow_schema())
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError) as error:
        raise UnreadableBatch(f"the payload is not an Arrow stream of ticks: {error}", reason=UNREADABLE) from error
    batches = table.to_batches()
    # of one record batch, as ours are, in a third of the time
    frame = pl.DataFrame(batches[0]) if len(batches) == 1 else pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame

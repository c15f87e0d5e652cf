"""Splice the Arrow payloads of several batches into one stream; only where they are tiny is a row decoded.

What a payload looks like stands in `market_pipeline.payload`. An Arrow IPC stream is a schema message, dictionary
batches, record batches and an end mark (Arrow columnar format, "IPC Streaming Format"). Ours all begin alike, so the
record batches of many can stand behind the schema and dictionaries of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.ipc

from market_pipeline.errors import UnreadableBatch

# Where payloads are smaller on average their record batches are joined: each costs ClickHouse half a millisecond.
SMALL_BYTES = 16 * 1024
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@dataclass(frozen=True, slots=True)
class _Parts:
    """A payload cut in two: schema and dictionaries; then everything from the first record batch to the end mark."""

    preamble: bytes
    body: memoryview
    alone: bool  # a dictionary changes after the first record batch: what follows another stream would be misread


def splice(payloads: Sequence[bytes]) -> list[bytes]:
    """Join payloads into as few Arrow IPC streams as their encodings allow: one, when all are ours.

    Payloads with another schema or other dictionaries (a foreign producer, another version) get a stream of their
    own: a reader that loads a dictionary only once would silently take its neighbour's values. The order of payloads
    is kept within a stream, and streams come in the order of their first payload. One payload comes back unchanged;
    many tiny ones become one record batch.

    Raises:
        UnreadableBatch: a payload is no Arrow IPC stream; the message gives its position.
    """
    if len(payloads) == 1:
        return [payloads[0]]
    streams: dict[tuple[bytes, int], list[bytes | memoryview]] = {}
    for position, payload in enumerate(payloads):
        parts = _cut(payload, position)
        pieces = streams.setdefault((parts.preamble, position if parts.alone else -1), [parts.preamble])
        pieces.append(parts.body)
    return [_joined(b"".join([*pieces, END_OF_STREAM]), len(pieces) - 1) for pieces in streams.values()]


def _joined(stream: bytes, payloads: int) -> bytes:
    """Return a stream of many small payloads as one of a single record batch, all others as they are.

    Measured with 20 payloads of one row: 12 ms an insert instead of 21.
    """
    if payloads < 2 or len(stream) > SMALL_BYTES * payloads:
        return stream
    sink = pa.BufferOutputStream()
    try:
        with pa.ipc.open_stream(stream) as reader:
            table = reader.read_all().combine_chunks()
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            writer.write_table(table)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UnreadableBatch(f"a payload is not an Arrow stream: {error}", reason="unreadable_payload") from error
    joined: bytes = sink.getvalue().to_pybytes()
    return joined


def _cut(payload: bytes, position: int) -> _Parts:
    source = pa.BufferReader(payload)
    first_batch: int | None = None
    alone = False
    try:
        while True:
            begin = source.tell()
            try:
                message = pa.ipc.read_message(source)
            except EOFError:  # the end mark, or a stream that ends without one
                break
            if message.type == "record batch":
                first_batch = begin if first_batch is None else first_batch
            elif first_batch is not None:
                alone = True
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UnreadableBatch(
            f"payload {position} is not an Arrow stream: {error}", reason="unreadable_payload"
        ) from error
    if begin == 0:
        raise UnreadableBatch(f"payload {position} is empty", reason="unreadable_payload")
    cut = begin if first_batch is None else first_batch
    return _Parts(payload[:cut], memoryview(payload)[cut:begin], alone)

"""Splice the Arrow payloads of several batches into one stream, without decoding a row.

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
    is kept within a stream, and streams come in the order of their first payload. One payload comes back unchanged.

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
    return [b"".join([*pieces, END_OF_STREAM]) for pieces in streams.values()]


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

"""Join the Arrow streams that chDB yields block by block into one stream."""

from __future__ import annotations

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""The mark that ends an Arrow IPC stream (Arrow columnar format, "IPC Streaming Format")."""


class ArrowSplicer:
    """Turn whole Arrow streams of one schema, one a block, into the pieces of one stream.

    Keep the schema message of the first and drop those of the others and every end mark: a reader would stop at the
    first. Who uses it writes END_OF_STREAM last. The pieces are views: nothing is copied.
    """

    def __init__(self) -> None:
        self._first = True

    def splice(self, stream: bytes) -> memoryview:
        """Return the part of the next block's stream that belongs into the joint one."""
        view = memoryview(stream)
        start = 0
        if not self._first:
            # A message: continuation mark (4 bytes), length of its metadata (4 bytes), metadata; a schema has no body.
            start = 8 + int.from_bytes(view[4:8], "little")
        self._first = False
        end = len(view) - len(END_OF_STREAM) if stream.endswith(END_OF_STREAM) else len(view)
        return view[start:end]

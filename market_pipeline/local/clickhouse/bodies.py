"""Read request bodies: in pieces, inflated, within a limit; and cut multipart forms."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.types import Receive

from market_pipeline.local.clickhouse.compression import OverLimit, decompressor
from market_pipeline.local.clickhouse.errors import ClickHouseError, Code
from market_pipeline.local.clickhouse.workers import Workers

PIECE = 1 << 20
"""Bytes that are worth a trip to a worker thread and into the engine."""

HEAD = 1 << 16
"""Bytes read before the statement is known."""

_INLINE = 1 << 16  # inflating less than this takes less time than a worker thread's answer


class Body:
    """The body of one request, read in order and once.

    `limit` bounds the bytes on the wire and the inflated bytes, `patience` the seconds between two pieces from the
    client. Every read may raise ClickHouseError: TOO_MANY_BYTES, SOCKET_TIMEOUT, NETWORK_ERROR when the client is
    gone, CANNOT_DECOMPRESS.
    """

    def __init__(
        self, receive: Receive, workers: Workers, *, encoding: str, length: str, limit: int, patience: float
    ) -> None:
        self._receive, self._workers = receive, workers
        self._inflate = decompressor(encoding)
        self._limit, self._patience = limit, patience
        self._left_wire = self._left_inflated = limit
        self.ended = False
        if length.isdigit() and int(length) > limit:
            raise self._too_long()

    def _too_long(self) -> ClickHouseError:
        return ClickHouseError(
            f"The request body is over the limit of {self._limit} bytes: send smaller batches, or start the server "
            "with a higher --max-body.",
            Code.TOO_MANY_BYTES,
        )

    async def read(self, size: int = PIECE) -> bytes:
        """Return the next piece, of about `size` bytes on the wire; b'' where it ends or nothing is inflated yet."""
        pieces: list[bytes] = []
        count = 0
        while count < size and not self.ended:
            try:
                async with asyncio.timeout(self._patience):
                    message = await self._receive()
            except TimeoutError:
                raise ClickHouseError(f"No data for {self._patience:g} s", Code.SOCKET_TIMEOUT) from None
            if message["type"] == "http.disconnect":
                self.ended = True
                raise ClickHouseError("Client closed the connection", Code.NETWORK_ERROR)
            if piece := message.get("body"):
                pieces.append(piece)
                count += len(piece)
            self.ended = not message.get("more_body")
        self._left_wire -= count
        if self._left_wire < 0:
            raise self._too_long()
        raw = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return await self._inflated(raw) if self._inflate else raw

    async def read_all(self) -> bytes:
        """Return the rest of the body."""
        pieces = []
        while not self.ended:
            pieces.append(await self.read())
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _inflated(self, raw: bytes) -> bytes:
        assert self._inflate is not None
        try:
            if len(raw) > _INLINE:
                data = await self._workers.run(self._inflate.feed, raw, self._left_inflated)
            else:
                data = self._inflate.feed(raw, self._left_inflated)
        except OverLimit:
            raise self._too_long() from None
        except Exception as error:  # each library has exceptions of its own
            raise ClickHouseError(f"Cannot decompress the request body: {error}", Code.CANNOT_DECOMPRESS) from None
        self._left_inflated -= len(data)
        if self.ended and not self._inflate.complete:
            raise ClickHouseError("Cannot decompress the request body: it is cut short", Code.CANNOT_DECOMPRESS)
        return data


@dataclass(frozen=True)
class Part:
    """One part of a multipart form: a field or, with `is_file`, the contents of a file."""

    name: str
    is_file: bool
    data: bytes


def multipart(body: bytes, content_type: str) -> Iterator[Part]:
    """Yield the parts of a multipart/form-data body; raise ClickHouseError (BAD_ARGUMENTS) without a boundary."""
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    if not boundary:
        raise ClickHouseError("No boundary in multipart body", Code.BAD_ARGUMENTS)
    for part in body.split(b"--" + boundary.group(1).encode())[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)
        yield Part(name.group(1).decode(errors="replace") if name else "", b"filename=" in head, data[:-2])

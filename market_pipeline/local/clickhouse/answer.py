"""Write one HTTP answer, whole or as a stream, and keep back its last piece."""

from __future__ import annotations

import json
import uuid

from starlette.types import Message, Send

from market_pipeline.local.clickhouse.compression import Compressor
from market_pipeline.local.clickhouse.errors import ClickHouseError, exception_block
from market_pipeline.local.clickhouse.workers import Workers

TEXT = "text/plain; charset=UTF-8"
BINARY = "application/octet-stream"


class Answer:
    """The answer to one request.

    Everything up to the last piece is sent at once; the last is kept until `release`, which the request calls when
    its handle or session is free again: a client that has read the whole answer may ask the same session the next
    thing, and must not be told that it is locked.
    """

    def __init__(self, send: Send, workers: Workers, headers: dict[str, str]) -> None:
        self._send, self._workers = send, workers
        self.headers = headers
        self.started = False
        self._compressor: Compressor | None = None
        self._kept: list[Message] = []

    def encode_as(self, encoding: str, compressor: Compressor) -> None:
        """Compress what follows; to be called before the answer starts."""
        self.headers["Content-Encoding"] = encoding
        self._compressor = compressor

    async def whole(self, body: bytes, content_type: str = TEXT, status: int = 200) -> None:
        """Answer with a body that is known."""
        if self._compressor:
            body = await self._workers.run(self._compressed, body, last=True)
        self._kept = [self._start(status, content_type, len(body)), {"type": "http.response.body", "body": body}]

    async def begin(self, content_type: str) -> None:
        """Start a stream with status 200; an error can from now on only be told inside it."""
        self.headers["X-ClickHouse-Exception-Tag"] = uuid.uuid4().hex[:16]
        self.started = True
        await self._send(self._start(200, content_type, None))

    async def piece(self, data: bytes | memoryview) -> None:
        """Send a piece of the stream, waiting while the client is slow."""
        if self._compressor:
            data = await self._workers.run(self._compressed, bytes(data))
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """End the stream with a last piece."""
        if self._compressor:
            data = await self._workers.run(self._compressed, data, last=True)
        self._kept = [{"type": "http.response.body", "body": data}]

    async def fail(self, error: ClickHouseError, version: str) -> None:
        """Report an error: as the whole answer, or inside the stream that has started."""
        text = error.rendered(version)
        if self.started:
            await self.end(exception_block(self.headers["X-ClickHouse-Exception-Tag"], text))
            return
        self._compressor = None
        for name in ("X-ClickHouse-Format", "Content-Encoding"):
            self.headers.pop(name, None)
        self.headers["X-ClickHouse-Exception-Code"] = str(error.code)
        await self.whole(text.encode(errors="replace") + b"\n", status=error.status)

    async def release(self) -> None:
        """Send what was kept back."""
        kept, self._kept = self._kept, []
        for message in kept:
            await self._send(message)

    def _start(self, status: int, content_type: str, length: int | None) -> Message:
        headers = {**self.headers, "Content-Type": content_type}
        if length is not None:
            headers["Content-Length"] = str(length)
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        return {"type": "http.response.start", "status": status, "headers": encoded}

    def _compressed(self, data: bytes, last: bool = False) -> bytes:
        assert self._compressor is not None
        piece = self._compressor.compress(data) if data else b""
        return piece + self._compressor.flush() if last else piece


def summary(
    elapsed_ns: int,
    *,
    read: tuple[int, int] = (0, 0),
    written: tuple[int, int] = (0, 0),
    result: tuple[int, int] = (0, 0),
) -> str:
    """Return the header `X-ClickHouse-Summary`: rows and bytes that a statement read, wrote and answered."""
    numbers = {
        "read_rows": read[0],
        "read_bytes": read[1],
        "written_rows": written[0],
        "written_bytes": written[1],
        "total_rows_to_read": 0,
        "result_rows": result[0],
        "result_bytes": result[1],
        "elapsed_ns": elapsed_ns,
    }
    return json.dumps({name: str(number) for name, number in numbers.items()})

"""A vendor whose every byte a test decides: for answers that no honest server gives."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

KEY = "k3y-that-must-never-be-seen"


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    at: float

    @property
    def range_ms(self) -> tuple[int, int]:
        """`from` and `to` of an aggregates request."""
        *_, start, end = self.path.split("/")
        return int(start), int(end)


@dataclass(frozen=True)
class Reply:
    """An answer; `cut` sends only so many bytes of the body and closes, `delay_s` comes before the first byte."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    delay_s: float = 0.0


def bar(minute: int, price: float = 1.1, **members: Any) -> dict[str, Any]:
    """Make a wire row; `minute` counts from 2024-01-01 00:00 UTC."""
    row = {"v": 10, "vw": price, "o": price, "c": price, "h": price, "l": price, "t": ms(minute), "n": 3}
    return {**row, **members}


def ms(minute: int) -> int:
    """Return the epoch milliseconds of a minute counted from 2024-01-01 00:00 UTC."""
    return 1_704_067_200_000 + 60_000 * minute


def page(rows: list[dict[str, Any]] | None, **members: Any) -> Reply:
    """Make a good answer with these rows."""
    count = len(rows or [])
    envelope = {"ticker": "C:EURUSD", "queryCount": count, "resultsCount": count, "adjusted": True, "status": "OK"}
    body = {**envelope, "request_id": "r1", "results": rows, **members}
    return Reply(body=json.dumps(body, separators=(",", ":")).encode())


class ScriptedVendor:
    """Serve on a free loopback port what `answer` returns; `asked` keeps every request."""

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self._answer = answer
        self.asked: list[Asked] = []

    async def __aenter__(self) -> ScriptedVendor:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.host = f"127.0.0.1:{port}"
        self.base_url = f"http://{self.host}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._serve_one(reader, writer):
                pass
        writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        parts = urlsplit(first.split(" ")[1])
        asked = Asked(parts.path, dict(parse_qsl(parts.query)), headers, time.monotonic())
        self.asked.append(asked)
        reply = self._answer(asked)
        if reply.delay_s:
            await asyncio.sleep(reply.delay_s)
        lines = [f"HTTP/1.1 {reply.status} X", f"Content-Length: {len(reply.body)}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + reply.body[: reply.cut])
        await writer.drain()
        return reply.cut is None


class Script:
    """Answer with these replies in turn, the last one again and again."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)

    def __call__(self, _: Asked) -> Reply:
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

"""A vendor of streams on loopback: a real WebSocket server that says what a test tells it to say."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from market_pipeline.settings import StreamSettings

# Tests look for the key in what the client logs: the server would log every frame too.
_SILENT = logging.getLogger("stream_vendor")
_SILENT.setLevel(logging.CRITICAL + 1)

KEY = "stream-key-0123456789-very-secret"


def quick_stream(url: str, **settings: Any) -> StreamSettings:
    """Return settings whose pauses are short."""
    quick = {
        "silence_s": 30.0,
        "cooldown_s": 0.3,
        "stable_s": 0.2,
        "handshake_timeout_s": 5.0,
        "ack_timeout_s": 5.0,
        "backoff_initial_s": 0.01,
        "backoff_max_s": 0.05,
        "heartbeat_s": 0.2,
        "lease_ttl_s": 2.0,
    }
    return StreamSettings(**{"url": url, **quick, **settings})


def quote(pair: str = "EUR/USD", price: float = 1.1, at_ms: int | None = None) -> dict[str, Any]:
    """Return a forex quote of now."""
    at_ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
    return {"ev": "C", "p": pair, "x": 48, "a": price + 0.0001, "b": price, "t": at_ms}


def status(word: str, message: str = "") -> dict[str, str]:
    """Return a status event."""
    return {"ev": "status", "status": word, "message": message or word}


class Connection:
    """One client of the vendor."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.path = socket.request.path if socket.request else ""
        self.opened_at = time.monotonic()
        self.topics: list[str] = []
        self.heard: list[dict[str, Any]] = []
        self.subscribed = asyncio.Event()

    async def send(self, *events: dict[str, Any]) -> None:
        """Send events as one frame."""
        await self.socket.send(json.dumps(events))

    def cut(self) -> None:
        """End the TCP connection without a closing handshake."""
        self.socket.transport.abort()


class StreamVendor:
    """Serve streams: `async with StreamVendor() as vendor: ... vendor.url`.

    on_auth: the events in answer to a key, by number of the connection (from 0). acknowledges: whether a topic is
    acknowledged. greets: whether a connection is greeted at all.
    """

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.arrived = asyncio.Event()
        self.greets = True
        self.on_auth: Callable[[int, str], list[dict[str, Any]]] = lambda number, key: [
            status("auth_success" if key == KEY else "auth_failed")
        ]
        self.acknowledges: Callable[[str], bool] = lambda topic: True
        self._server: Server | None = None

    async def __aenter__(self) -> StreamVendor:
        self._server = await serve(self._serve, "127.0.0.1", 0, ping_interval=None, close_timeout=0.2, logger=_SILENT)
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """The address, without a market."""
        return f"ws://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """Stop listening and cut everybody."""
        if self._server is not None:
            for connection in self.connections:
                if connection.socket.transport is not None:
                    connection.cut()
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def subscribed(self, number: int = -1, *, timeout: float = 15.0) -> Connection:
        """Wait for connection `number` (from 0; -1: the first one) and until it has subscribed."""
        number = max(number, 0)
        async with asyncio.timeout(timeout):
            while len(self.connections) <= number:
                self.arrived.clear()
                await self.arrived.wait()
            connection = self.connections[number]
            await connection.subscribed.wait()
        return connection

    async def _serve(self, socket: ServerConnection) -> None:
        number, connection = len(self.connections), Connection(socket)
        self.connections.append(connection)
        self.arrived.set()
        try:
            if self.greets:
                await connection.send(status("connected", "Connected Successfully"))
            async for text in socket:
                message = json.loads(text)
                connection.heard.append(message)
                if message["action"] == "auth":
                    await connection.send(*self.on_auth(number, message["params"]))
                elif message["action"] == "subscribe":
                    topics = message["params"].split(",")
                    connection.topics += topics
                    for topic in filter(self.acknowledges, topics):
                        await connection.send(status("success", f"subscribed to: {topic}"))
                    connection.subscribed.set()
        except ConnectionClosed:
            pass

"""A small client of the simulator's WebSocket: it says what it is told to and keeps what it gets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, Self

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from market_pipeline.simulator.server import Simulator

SECONDS = 10.0


class StreamClient:
    """An async context manager around one connection."""

    def __init__(self, simulator: Simulator, market: str = "forex", *, key: str | None = None, **options: Any) -> None:
        self._simulator = simulator
        self._key = key or simulator.api_key
        url = f"{simulator.base_url.replace('http', 'ws')}/{market}"
        self._connecting = connect(url, proxy=None, compression=None, max_size=None, **options)

    async def __aenter__(self) -> Self:
        self.ws: ClientConnection = await self._connecting
        self.received = 0
        self._sent_before = int(self._simulator.stream_stats()["sent_total"])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.ws.close()

    async def say(self, action: str, params: str) -> None:
        await self.ws.send(json.dumps({"action": action, "params": params}))

    async def frame(self, seconds: float = SECONDS) -> list[dict[str, Any]]:
        """Return the next frame: always an array."""
        async with asyncio.timeout(seconds):
            events = msgspec.json.decode(await self.ws.recv())
        assert isinstance(events, list)
        self.received += sum(event["ev"] != "status" for event in events)
        return events

    async def status(self) -> str:
        """Return the next frame's one status."""
        (event,) = await self.frame()
        assert event["ev"] == "status"
        return event["status"]

    async def enter(self, params: str = "", *, acknowledged: int | None = None) -> list[str]:
        """Authenticate and subscribe; return what was acknowledged."""
        assert await self.status() == "connected"
        await self.say("auth", self._key)
        assert await self.status() == "auth_success"
        if not params:
            return []
        await self.say("subscribe", params)
        count = len(params.split(",")) if acknowledged is None else acknowledged
        return [(await self.frame())[0]["message"].removeprefix("subscribed to: ") for _ in range(count)]

    async def events(self, count: int) -> list[dict[str, Any]]:
        """Return events until there are so many of them."""
        got: list[dict[str, Any]] = []
        while len(got) < count:
            got += await self.frame()
        return got

    async def advanced(self) -> list[dict[str, Any]]:
        """Return the events until an advance has ended; no other client may be listening."""
        waiting = asyncio.create_task(asyncio.to_thread(self._simulator.wait_advanced, SECONDS))
        got: list[dict[str, Any]] = []
        while not (waiting.done() and self.received >= waiting.result()["sent_total"] - self._sent_before):
            with contextlib.suppress(TimeoutError):
                got += await self.frame(0.1)
        return got

    async def until_closed(self) -> tuple[list[dict[str, Any]], ConnectionClosed]:
        """Return the events up to the end of the connection, and how it ended."""
        got: list[dict[str, Any]] = []
        try:
            while True:
                got += await self.frame()
        except ConnectionClosed as closed:
            return got, closed


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds. Raises TimeoutError."""
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        await asyncio.sleep(0.02)

"""One WebSocket: frames in, objects out, and no key in any log."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import datetime

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.datastructures import MultipleValuesError
from websockets.exceptions import WebSocketException

from market_pipeline.settings import is_loopback
from market_pipeline.vendors.polygon.dates import http_date

# The vendor sends what it has gathered as one frame: a burst after a pause must not end the connection.
MAX_FRAME_BYTES = 16 * 1024 * 1024
CLOSE_TIMEOUT_S = 1.0
FAILURES = (WebSocketException, OSError, TimeoutError, EOFError)
"""What the library raises when a connection cannot be opened or is lost."""


class _Connect(connect):
    """Connect without following a redirect: the key would follow it to another host."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class _NoFrames(logging.LoggerAdapter[logging.Logger]):
    """Log for the library, but never at DEBUG: there it prints every frame, whole or in part, the key's too."""

    def isEnabledFor(self, level: int) -> bool:
        return level > logging.DEBUG and super().isEnabledFor(level)


class Wire:
    """Hold one open WebSocket to the vendor."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    @classmethod
    async def open(cls, url: str, *, timeout_s: float) -> Wire:
        """Open the connection; the key is not sent yet.

        Raises: one of FAILURES.
        """
        return cls(
            await _Connect(
                url,
                logger=_NoFrames(logging.getLogger(__name__)),
                compression=None,  # a frame must be read in microseconds
                open_timeout=timeout_s,
                close_timeout=CLOSE_TIMEOUT_S,
                ping_interval=None,  # `ping` is sent by whoever needs to know when it was answered
                max_size=MAX_FRAME_BYTES,
                user_agent_header="market-pipeline",
                proxy=None if is_loopback(url) else True,
            )
        )

    @property
    def date(self) -> datetime | None:
        """The vendor's clock when it answered the handshake, in whole seconds; None where it does not say."""
        answer = self._socket.response
        try:
            return http_date(answer.headers) if answer is not None else None
        except MultipleValuesError:
            return None

    async def receive(self) -> bytes:
        """Return the next frame.

        Raises: one of FAILURES, a clean close too.
        """
        return await self._socket.recv(decode=False)

    async def send(self, message: dict[str, str]) -> None:
        """Send one object."""
        await self._socket.send(msgspec.json.encode(message).decode())

    async def ping(self) -> None:
        """Send a ping and wait for its answer.

        The vendor answers behind everything that it had sent before: so all of that has been received by then.
        """
        await (await self._socket.ping())

    async def close(self) -> None:
        """Close the connection, within CLOSE_TIMEOUT_S."""
        with suppress(*FAILURES):
            await self._socket.close()

"""The socket below a WebSocket session: whole frames at speed, and frames that no sound server would send."""

from __future__ import annotations

import asyncio
import socket
import struct

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

WIRE = "market_pipeline.wire"
_TEXT = 0x81  # a text frame, the last of its message
_RESET = struct.pack("ii", 1, 0)


class StreamProtocol(WebSocketsSansIOProtocol):
    """Be uvicorn's WebSocket protocol, and let the application reach below it: it is in the scope under `WIRE`.

    Frames that are written here go past the protocol's own bookkeeping, which for data frames of a server holds
    nothing: that is what makes them cheap, and halves of them possible. While a frame is written in pieces control
    frames wait, for they would stand in its middle.
    """

    muted = False
    _in_pieces = False

    def handle_connect(self, event: Request) -> None:
        """Give the application this protocol."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            self.scope[WIRE] = self  # type: ignore[literal-required]

    def handle_ping(self) -> None:
        """Answer a ping; not while muted."""
        if self.muted:
            self.conn.data_to_send()
        elif not self._in_pieces:
            super().handle_ping()

    def send_keepalive_ping(self) -> None:
        """Send a ping; not while muted or amid a frame."""
        if self.muted or self._in_pieces:
            self.schedule_ping()
        else:
            super().send_keepalive_ping()

    async def write(self, frame: bytes) -> None:
        """Write a frame when the client has room for it. Raises ClientDisconnected."""
        await self.writable.wait()
        if self.disconnected or self.transport.is_closing():
            raise ClientDisconnected
        self.transport.write(frame)

    async def write_slowly(self, frame: bytes, seconds: float, pieces: int) -> None:
        """Write a frame in pieces."""
        size = max(1, -(-len(frame) // max(1, pieces)))
        parts = [frame[at : at + size] for at in range(0, len(frame), size)]
        self._in_pieces = True
        try:
            for part in parts:
                await self.write(part)
                await asyncio.sleep(seconds / len(parts))
        finally:
            self._in_pieces = False
        self.transport.write(b"".join(self.conn.data_to_send()))

    async def write_half(self, frame: bytes) -> None:
        """Write the first half of a frame, then reset the connection."""
        await self.write(frame[: len(frame) // 2])
        # A reset discards what the client has not read yet: let the half arrive.
        await asyncio.sleep(0.05)
        self.reset()

    def reset(self) -> None:
        """Reset the TCP connection: no close frame, no FIN."""
        if not self.disconnected and not self.transport.is_closing():
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()


def frame_of(payload: bytes) -> bytes:
    """Return a server's text frame (RFC 6455, section 5.2: unmasked)."""
    size = len(payload)
    if size < 126:
        return bytes((_TEXT, size)) + payload
    if size < 65_536:
        return struct.pack("!BBH", _TEXT, 126, size) + payload
    return struct.pack("!BBQ", _TEXT, 127, size) + payload

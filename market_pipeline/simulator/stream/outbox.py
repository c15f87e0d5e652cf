"""What is on its way to one client: frames in order, counted when they are written."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from uvicorn.protocols.utils import ClientDisconnected

from market_pipeline.simulator.stream.faults import StreamFault
from market_pipeline.simulator.stream.wire import StreamProtocol

_ROOM_BYTES = 512 * 1024


@dataclass(slots=True)
class Outgoing:
    """Hold a frame and the events in it by lane, or an end: a closing handshake with `code`, or a reset."""

    frame: bytes = b""
    events: Counter[str] = field(default_factory=Counter)
    fault: StreamFault | None = None
    close: int | None = None
    reset: bool = False


class Outbox:
    """Write frames one after the other at the client's pace. `backlog` counts the bytes that wait."""

    def __init__(
        self,
        wire: StreamProtocol,
        close: Callable[[int], Awaitable[None]],
        written: Callable[[Outgoing], None],
        lost: Callable[[int], None],
    ) -> None:
        self._wire, self._close, self._written, self._lost = wire, close, written, lost
        self._waiting: deque[Outgoing] = deque()
        self._wake = asyncio.Event()
        self.backlog = 0
        self.ended = False

    @property
    def empty(self) -> bool:
        """Tell whether nothing waits and nothing is being written."""
        return not self._waiting

    @property
    def has_room(self) -> bool:
        """Tell whether the client keeps up well enough for more."""
        return self.backlog <= _ROOM_BYTES

    def put(self, item: Outgoing) -> None:
        """Add a frame or an end; nothing follows an end."""
        if self.ended:
            self._lost(item.events.total())
            return
        self.ended = item.reset or item.close is not None
        self._waiting.append(item)
        self.backlog += len(item.frame)
        self._wake.set()

    async def run(self) -> None:
        """Write until an end or until the client is gone; what still waits then is lost."""
        try:
            while True:
                while self._waiting:
                    await self._write(self._waiting[0])
                    item = self._waiting.popleft()
                    self.backlog -= len(item.frame)
                    if item.close is not None or item.reset:
                        return
                self._wake.clear()
                await self._wake.wait()
        except ClientDisconnected:
            pass
        finally:
            self.ended = True
            self._lost(sum(item.events.total() for item in self._waiting))
            self._waiting.clear()
            self.backlog = 0

    async def _write(self, item: Outgoing) -> None:
        if item.reset:
            self._wire.reset()
        elif item.close is not None:
            await self._close(item.close)
        elif item.fault is None:
            await self._wire.write(item.frame)
            self._written(item)
        elif item.fault.kind == "half_frame":
            await self._wire.write_half(item.frame)
            raise ClientDisconnected
        else:
            seconds = 1.0 if item.fault.seconds is None else item.fault.seconds
            await self._wire.write_slowly(item.frame, seconds, item.fault.pieces)
            self._written(item)

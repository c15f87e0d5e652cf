"""What a stream tells of itself while it runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from market_pipeline.vendors.polygon.stream.events import EventCounters, StreamTick

if TYPE_CHECKING:
    from market_pipeline.vendors.polygon.stream.client import PolygonStream


class StreamListener(Protocol):
    """Hear what a stream does. Called from the reader: must return at once, and can await nothing. Times: epoch ms."""

    def opened(self, stream: PolygonStream) -> None:
        """A connection is authenticated; nothing is subscribed yet."""
        ...

    def subscribed(self, symbol: str, at_ms: int) -> None:
        """The vendor acknowledged the topic that the symbol's bars are made of, or sent the first event of it."""
        ...

    def ticks(self, ticks: list[StreamTick]) -> None:
        """Ticks of one frame, in their order."""
        ...

    def unreadable(self, stream: PolygonStream, at_ms: int) -> None:
        """A frame could not be read: whatever was in it is lost."""
        ...

    def closed(self, stream: PolygonStream, cause: str) -> None:
        """The connection has ended: cause `disconnect` or `silence`."""
        ...


@dataclass(slots=True)
class StreamCounters(EventCounters):
    """Count what a stream did; `ended` by cause, `statuses` by the vendor's word."""

    frames: int = 0
    unreadable: int = 0
    connects: int = 0
    pongs: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)

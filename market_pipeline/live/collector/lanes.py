"""One symbol's way through the collector: its session, its open gap and its ticks that wait."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from market_pipeline.bus.losses import LossCause
from market_pipeline.vendors.polygon.stream import PolygonStream, StreamTick


@dataclass(slots=True)
class Session:
    """A time in which a symbol's events came uninterrupted and without overflow; epoch ms.

    started_ms: None while the subscription is not acknowledged, so that nothing is proven.
    lost_from_ms: events between this and the start may be lost; None where nothing went before.
    ended_ms: its last sign of life, once it has ended. told: there is a batch of it, published or waiting.
    """

    id: str
    stream: PolygonStream
    started_ms: int | None
    lost_from_ms: int | None = None
    ended_ms: int | None = None
    told: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """A time, still going on, in which events may be lost; epoch ms."""

    from_ms: int
    cause: LossCause
    session_id: str


@dataclass(slots=True)
class Lane:
    """Hold one symbol's state during one term of the lease.

    acknowledged_at: monotonic time since which the subscription is known to run. heard: a tick came since the
    connection opened. sent_at: monotonic time of the last batch. waits_since: monotonic time since which ticks wait or
    are being published, and no batch has been; None where none do. batches: made so far, each of which is published or
    ends the term: a number is missing for consumers only where one was lost on its way. dropped: counts overflow.
    """

    symbol: str
    calendar: str
    primary_kind: str
    stream: PolygonStream | None = None
    acknowledged: bool = False
    acknowledged_at: float = 0.0
    heard: bool = False
    session: Session | None = None
    gap: Gap | None = None
    pending: deque[tuple[Session, StreamTick]] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    full: asyncio.Event = field(default_factory=asyncio.Event)
    sent_at: float = 0.0
    waits_since: float | None = None
    batches: int = 0
    dropped: int = 0

    def alive_ms(self, session: Session) -> int:
        """Return up to where the session is proven, once everything that was taken off the lane is published."""
        alive = session.stream.alive_ms if session.ended_ms is None else session.ended_ms
        if self.pending and self.pending[0][0] is session:
            alive = min(alive, self.pending[0][1].ts_ms)
        return alive

"""What the reader hands over: bounded, by symbol, with a record of every time in which something may be lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from itertools import count

import structlog

from market_pipeline.bus.losses import LossCause, LossInterval
from market_pipeline.bus.tick_envelope import LOSS_MARGIN
from market_pipeline.live.collector.lanes import Gap, Lane, Session
from market_pipeline.market.timeframes import from_ms
from market_pipeline.vendors.polygon.stream import PolygonStream, StreamTick

log = structlog.get_logger(__name__)

# A gap begins so much before the last sign of life.
MARGIN_MS = LOSS_MARGIN // timedelta(milliseconds=1)
# After an overflow ticks are taken again when so much of the queue is free: one long loss, not thousands of short ones.
LOW_WATER = 0.75


class Intake:
    """Take ticks and sessions from streams (a `StreamListener`) and keep them until they are published.

    `size` counts ticks that wait or are being published; at `limit` ticks are dropped, counted, and the session of
    their symbol ends. Nothing here awaits, so the reader is never held up.
    """

    def __init__(
        self,
        lanes: Iterable[Lane],
        limit: int,
        batch_ticks: int,
        name: str,
        on_loss: Callable[[LossInterval], None],
    ) -> None:
        """Prepare; `name` begins the ids of the sessions, `on_loss` is told of each loss once its end is known."""
        self.lanes = {lane.symbol: lane for lane in lanes}
        self.limit = limit
        self.size = 0
        self.dropped = 0
        self.empty = asyncio.Event()
        self.empty.set()
        self._batch_ticks = batch_ticks
        self._overflowing = False
        self._name = name
        self._numbers = count(1)
        self._on_loss = on_loss

    def opened(self, stream: PolygonStream) -> None:
        """A connection is open; nothing is proven before a subscription is acknowledged."""
        for lane in self._lanes_of(stream):
            lane.stream, lane.acknowledged, lane.heard = stream, False, False

    def subscribed(self, symbol: str, at_ms: int) -> None:
        """A symbol's stream has begun."""
        lane = self.lanes[symbol]
        lane.acknowledged, lane.acknowledged_at = True, time.monotonic()
        if not self._full():
            self._begin(lane, at_ms)

    def ticks(self, ticks: list[StreamTick]) -> None:
        """Keep ticks, or drop them where there is no room."""
        for tick in ticks:
            lane = self.lanes[tick.symbol]
            lane.heard = True
            if self._full():
                self._drop(lane, tick)
                continue
            session = lane.session or self._resume(lane, tick.received_ms)
            if session is None:
                continue
            if self.size == 0:
                self.empty.clear()
            self.size += 1
            session.told = True
            lane.pending.append((session, tick))
            if len(lane.pending) == 1:
                lane.arrived.set()
                if lane.waits_since is None:
                    lane.waits_since = time.monotonic()
            if len(lane.pending) >= self._batch_ticks:
                lane.full.set()

    def unreadable(self, stream: PolygonStream, at_ms: int) -> None:
        """A frame is lost, of whichever symbols: every session of the stream ends, and a new one begins."""
        for lane in self._lanes_of(stream):
            self._end(lane, stream.alive_ms, "unreadable")
            if lane.acknowledged and not self._full():
                self._begin(lane, at_ms)

    def closed(self, stream: PolygonStream, cause: str) -> None:
        """A connection has ended: what came after its last sign of life is lost."""
        silent = cause == "silence"
        for lane in self._lanes_of(stream):
            self._end(lane, stream.data_ms if silent else stream.alive_ms, "silence" if silent else "disconnect")
            lane.stream, lane.acknowledged = None, False

    def inherit(self, symbol: str, alive_ms: int, session_id: str) -> None:
        """Open the gap behind the last batch that is published of a symbol, by whichever collector."""
        self.lanes[symbol].gap = Gap(alive_ms - MARGIN_MS, "lease", session_id)

    def take(self, lane: Lane) -> tuple[Session, list[StreamTick]]:
        """Take the next batch off a lane that has ticks: of one session, in their order. They count until `done`."""
        session = lane.pending[0][0]
        ticks: list[StreamTick] = []
        while lane.pending and len(ticks) < self._batch_ticks and lane.pending[0][0] is session:
            ticks.append(lane.pending.popleft()[1])
        if not lane.pending:
            lane.arrived.clear()
        if len(lane.pending) < self._batch_ticks:
            lane.full.clear()
        return session, ticks

    def done(self, ticks: int) -> None:
        """Forget ticks that are published."""
        self.size -= ticks
        if self.size == 0:
            self.empty.set()

    def quiet_session(self, lane: Lane) -> Session | None:
        """Return the session of a lane without ticks, for a heartbeat; None where there is none to tell of."""
        if lane.session is None and lane.acknowledged and lane.stream is not None and not self._full():
            self._begin(lane, lane.stream.now_ms())
        session = lane.session
        if session is None or session.started_ms is None:
            return None
        session.told = True
        return session

    def mute(self, stream: PolygonStream, after_s: float, is_open: Callable[[Lane], bool]) -> tuple[str, ...]:
        """Return the symbols of an open market of which nothing came for so long after they were acknowledged.

        None where all are mute: then it is the connection, and the silence watch gives it up.
        """
        lanes, since = self._lanes_of(stream), time.monotonic() - after_s
        if not any(lane.heard for lane in lanes):
            return ()
        return tuple(
            lane.symbol
            for lane in lanes
            if lane.acknowledged and not lane.heard and lane.acknowledged_at <= since and is_open(lane)
        )

    @property
    def gaps(self) -> dict[str, Gap]:
        """The gaps that go on now, by symbol."""
        return {lane.symbol: lane.gap for lane in self.lanes.values() if lane.gap is not None}

    def _lanes_of(self, stream: PolygonStream) -> list[Lane]:
        return [self.lanes[symbol] for symbol in dict.fromkeys(stream.topics.symbol_of.values())]

    def _full(self) -> bool:
        if self._overflowing:
            if self.size <= self.limit * LOW_WATER:
                self._overflowing = False
                log.info("collector_overflow_over", dropped=self.dropped)
        elif self.size >= self.limit:
            self._overflowing = True
            log.warning("collector_overflow", waiting=self.size, limit=self.limit)
        return self._overflowing

    def _drop(self, lane: Lane, tick: StreamTick) -> None:
        lane.dropped += 1
        self.dropped += 1
        if lane.session is not None:
            self._end(lane, lane.session.stream.alive_ms, "overflow")
        if lane.gap is not None and tick.ts_ms < lane.gap.from_ms:
            lane.gap = replace(lane.gap, from_ms=tick.ts_ms)

    def _resume(self, lane: Lane, at_ms: int) -> Session | None:
        """Begin a session with a tick: a proven one where the subscription is known to run."""
        if lane.acknowledged:
            return self._begin(lane, at_ms)
        if lane.stream is None:
            return None
        lane.session = Session(self._new_id(), lane.stream, None)
        return lane.session

    def _begin(self, lane: Lane, at_ms: int) -> Session:
        assert lane.stream is not None
        session = Session(self._new_id(), lane.stream, at_ms)
        if lane.gap is not None:
            gap, lane.gap = lane.gap, None
            session.lost_from_ms = gap.from_ms
            self._on_loss(
                LossInterval(
                    lane.symbol, from_ms(gap.from_ms), from_ms(max(at_ms, gap.from_ms)), gap.cause, gap.session_id
                )
            )
        lane.session = session
        return session

    def _end(self, lane: Lane, alive_ms: int, cause: LossCause) -> None:
        session, lane.session = lane.session, None
        if session is None:
            return
        if session.started_ms is None:
            session.ended_ms = alive_ms
            return
        # The last data of a silent connection may be older than the session: what went before it, others answer for.
        session.ended_ms = max(alive_ms, session.started_ms)
        from_ms_ = session.ended_ms - MARGIN_MS
        if session.lost_from_ms is not None and not session.told:
            # Nobody has been told yet of the loss before this session: the next one tells of both.
            from_ms_ = min(from_ms_, session.lost_from_ms)
        lane.gap = Gap(from_ms_, cause, session.id)

    def _new_id(self) -> str:
        return f"{self._name}.{next(self._numbers)}"

"""The stream's server side: its sessions, the clock that drives them, and what may be done to them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.types import Receive, Scope, Send

from market_pipeline.simulator.plans import Plans
from market_pipeline.simulator.state import Clock, VendorState
from market_pipeline.simulator.stream.connection import Connection
from market_pipeline.simulator.stream.faults import StreamFaults
from market_pipeline.simulator.stream.settings import StreamSettings
from market_pipeline.simulator.stream.stats import StreamStats
from market_pipeline.simulator.stream.topics import MARKETS

_STEP_EVENTS = 2_000
_log = structlog.get_logger(__name__)


@dataclass
class _Advance:
    until: int
    subscriptions: int
    clock_changes: int


class StreamHub:
    """Serve the WebSocket over ASGI at `/forex`, `/crypto` and `/stocks`. All of it lives in the event loop's thread.

    Events are sent when their time passes the vendor's clock: those after the instant at which a client subscribed (or
    to which the clock was set), up to and with `now`. Or `advance` moves the clock as fast as the clients read.
    """

    def __init__(self, state: VendorState, plans: Plans) -> None:
        self.state = state
        self.plans = plans
        self.faults = StreamFaults()
        self.stats = StreamStats()
        self.settings = StreamSettings()
        self._connections: set[Connection] = set()
        self._joined: set[Connection] = set()
        self._advance: _Advance | None = None
        self._driving: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one session; refuse another path than a market's."""
        market = next((market for market in MARKETS if market == scope["path"].strip("/")), None)
        if market is None:
            await receive()
            await send({"type": "websocket.close"})
            return
        connection = Connection(self, market, scope, receive, send)
        self.stats.sessions["opened"] += 1
        self._connections.add(connection)
        self._drive()
        await connection.serve()

    def join(self, connection: Connection) -> bool:
        """Count a session against its key's connections to a market; False when that would be one too many."""
        same = [c for c in self._joined if (c.key, c.market) == (connection.key, connection.market)]
        if len(same) >= self.settings.connections_per_key:
            return False
        self._joined.add(connection)
        return True

    def leave(self, connection: Connection) -> None:
        """Forget a session that ended."""
        self._joined.discard(connection)
        if connection in self._connections:
            self._connections.discard(connection)
            self.stats.sessions["ended"] += 1

    # Control

    def advance(self, until_ms: int, subscriptions: int = 1) -> None:
        """Move the clock to an instant as fast as the clients read, and leave it there.

        It stands still while fewer than so many subscriptions are there. Setting the clock ends it. Raises ValueError
        for an instant that is not to come.
        """
        clock = self.state.clock()
        if until_ms <= clock.now:
            raise ValueError("the clock can only be advanced")
        self.state.move_now(clock.now)
        self._advance = _Advance(until_ms, subscriptions, clock.changes)
        self._drive()

    def set(self, settings: StreamSettings) -> None:
        """Change the settings."""
        self.settings = settings

    def shown(self) -> dict[str, Any]:
        """Return the counters, the live subscriptions by market, the clock and whether it is being advanced."""
        live: dict[str, list[str]] = {market: [] for market in MARKETS}
        for connection in self._connections:
            live[connection.market] += connection.lanes
        return {
            **self.stats.shown(),
            "open": len(self._connections),
            "subscriptions": {market: sorted(lanes) for market, lanes in live.items()},
            "now": self.state.now_ms(),
            "advancing": self._advance is not None,
        }

    def reset(self) -> None:
        """End every session; no faults, counters of zero, the usual settings."""
        for connection in list(self._connections):
            connection.drop()
            self.leave(connection)
        self._advance = None
        self.settings = StreamSettings()
        self.faults.clear()
        self.stats.clear()

    # The drive

    def _drive(self) -> None:
        if self._driving is None or self._driving.done():
            self._driving = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._connections or self._advance is not None:
            if self._advance is not None:
                await asyncio.sleep(self._step(self._advance))
            else:
                self._play(self.state.clock(), patient=False)
                await asyncio.sleep(self.settings.interval)

    def _step(self, advance: _Advance) -> float:
        """Move the clock a little way if everybody has room; return how long to wait before the next step."""
        clock = self.state.clock()
        if clock.changes != advance.clock_changes:
            self._advance = None
            return 0.0
        readers = [connection for connection in self._connections if connection.lanes]
        if sum(len(reader.lanes) for reader in readers) < advance.subscriptions:
            return self.settings.interval
        if not all(reader.outbox.has_room for reader in readers):
            return 0.001
        if clock.now < advance.until:
            end = min((reader.reach(advance.until, _STEP_EVENTS) for reader in readers), default=advance.until)
            self.state.move_now(end)
            self._play(self.state.clock(), patient=True)
            return 0.0
        if not all(reader.outbox.empty for reader in readers):
            return 0.001
        self._advance = None
        return 0.0

    def _play(self, clock: Clock, *, patient: bool) -> None:
        for connection in list(self._connections):
            try:
                connection.play(clock, patient=patient)
            except Exception:
                # One session must not take the others with it.
                _log.exception("stream session failed", market=connection.market)
                connection.drop()

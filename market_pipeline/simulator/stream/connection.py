"""One client's session: greeting, key, subscriptions, and its share of the events."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.types import Receive, Scope, Send

from market_pipeline.simulator.state import Clock
from market_pipeline.simulator.stream.events import Status
from market_pipeline.simulator.stream.faults import Active
from market_pipeline.simulator.stream.feed import Event, Feed
from market_pipeline.simulator.stream.outbox import Outbox, Outgoing
from market_pipeline.simulator.stream.shaping import Shaper
from market_pipeline.simulator.stream.topics import Lane, lanes_of
from market_pipeline.simulator.stream.wire import WIRE, StreamProtocol, frame_of
from market_pipeline.simulator.tickers import Market

if TYPE_CHECKING:
    from market_pipeline.simulator.stream.hub import StreamHub

_POLICY = 1008  # the close code of a session that is refused
_PREPARE_S = 0.002  # of every interval
_ENCODER = msgspec.json.Encoder()
_REFUSALS = {
    "auth_failed": "authentication failed",
    "auth_timeout": "authentication timed out",
    "max_connections": "Maximum number of websocket connections exceeded.",
}


class Request(msgspec.Struct):
    """What a client says: `{"action": "auth" | "subscribe" | "unsubscribe", "params": "..."}`."""

    action: str
    params: str = ""


@dataclass
class _Silence:
    fault: Active
    until: float | None


class Connection:
    """Serve one WebSocket session; `lanes` are its subscriptions by name."""

    def __init__(self, hub: StreamHub, market: Market, scope: Scope, receive: Receive, send: Send) -> None:
        self.market = market
        self.lanes: dict[str, Lane] = {}
        self.key: str | None = None
        self._hub = hub
        self._receive, self._send = receive, send
        self._wire: StreamProtocol = scope[WIRE]
        self.outbox = Outbox(self._wire, self._close, hub.stats.wrote, hub.stats.lose)
        self._shaper = Shaper()
        self._feed: Feed | None = None
        self._at = 0
        self._clock_changes = 0
        self._silence: _Silence | None = None

    async def serve(self) -> None:
        """Hold the session from the handshake to its end."""
        await self._receive()
        settings = self._hub.settings
        self._wire.ping_interval, self._wire.ping_timeout = settings.ping_interval, settings.ping_timeout
        date = (b"date", self._hub.state.http_date().encode())
        await self._send({"type": "websocket.accept", "headers": [date]})
        writing = asyncio.create_task(self.outbox.run())
        reading = asyncio.create_task(self._converse())
        try:
            await asyncio.wait({writing, reading}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and reading.exception() is None and reading.result():
                await writing  # the refusal is still to be written
        finally:
            self._hub.leave(self)
            for task in (writing, reading):
                task.cancel()
            results = await asyncio.gather(writing, reading, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def drop(self) -> None:
        """Reset the connection at once."""
        self._wire.reset()

    def reach(self, until_ms: int, events: int) -> int:
        """Return how far, and not beyond `until`, the clock may go for about so many events."""
        return self._current_feed().reach(self._at + 1, until_ms + 1, events) - 1

    def play(self, clock: Clock, *, patient: bool) -> None:
        """Put what became due since the last time on its way; `patient`: let a slow reader be."""
        if not self.lanes or self.outbox.ended:
            return
        events: list[Event] = []
        if clock.changes != self._clock_changes:
            # A clock that is set leaves out what lies between.
            self._at, self._clock_changes = clock.base, clock.changes
            events = self._shaper.let_go()
        if clock.now > self._at:
            events += self._current_feed().take(self._at + 1, clock.now + 1)
            self._at = clock.now
        if self._silent():
            self._hub.stats.lose(len(events))
            return
        faults = self._hub.faults.of_events(self.market)
        if faults or self._shaper.holding:
            events = self._shaper.shape(events, clock.now, faults)
        self._send_events(events)
        if not patient and self.outbox.backlog > self._hub.settings.slow_reader_bytes:
            self._hub.stats.sessions["cut_off"] += 1
            self.drop()
        elif not patient and self._feed is not None:
            self._feed.prepare(_PREPARE_S)

    # The conversation

    async def _converse(self) -> bool:
        """Talk until the client is gone; True when the session was refused."""
        self._say("connected", "Connected Successfully")
        refusal = await self._authenticate()
        if refusal is not None:
            if refusal:
                self._hub.stats.sessions[refusal] += 1
                self._say(refusal, _REFUSALS[refusal])
                self.outbox.put(Outgoing(close=_POLICY))
            return bool(refusal)
        self._hub.stats.sessions["auth_success"] += 1
        self._say("auth_success", "authenticated")
        while (request := await self._next()) is not None:
            if request.action == "subscribe":
                self._subscribe(request.params)
            elif request.action == "unsubscribe":
                self._unsubscribe(request.params)
            elif request.action == "auth":
                self._say("auth_success", "authenticated")
        return False

    async def _authenticate(self) -> str | None:
        """Return None for a right key, else the status that refuses it; "" when the client left."""
        try:
            async with asyncio.timeout(self._hub.settings.auth_timeout):
                while (request := await self._next()) is not None:
                    if request.action != "auth":
                        self._say("error", "not authorized")
                        continue
                    return await self._refusal(request.params)
        except TimeoutError:
            return "auth_timeout"
        return ""

    async def _refusal(self, api_key: str) -> str | None:
        hub = self._hub
        name = hub.plans.name_of(api_key)
        if name is None or not hub.plans.allows(name, self.market):
            return "auth_failed"
        fault = hub.faults.claim(("auth_failed", "auth_timeout", "max_connections"), self.market)
        if fault is not None:
            if fault.kind == "auth_timeout":
                await asyncio.sleep(fault.seconds or 0.0)
            return fault.kind
        self.key = name
        return None if hub.join(self) else "max_connections"

    async def _next(self) -> Request | None:
        """Return the client's next sensible message; None when it is gone."""
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return None
            try:
                return msgspec.json.decode(message.get("text") or message.get("bytes") or b"", type=Request)
            except msgspec.DecodeError:
                self._say("error", "invalid message")

    def _subscribe(self, params: str) -> None:
        added: dict[str, Lane] = {}
        for parameter in filter(None, map(str.strip, params.split(","))):
            lanes = lanes_of(parameter, self.market, lambda: self._hub.state.listed(self.market))
            if lanes is None:
                continue
            fault = self._hub.faults.claim(("drop_topic_ack",), self.market, lanes[0].ticker if lanes else "")
            if fault is None or not fault.mute:
                added |= {lane.key: lane for lane in lanes}
            if fault is None:
                self._hub.stats.acknowledged += 1
                self._say("success", f"subscribed to: {parameter}")
        self._change_lanes({**self.lanes, **added})

    def _unsubscribe(self, params: str) -> None:
        left = dict(self.lanes)
        for parameter in filter(None, map(str.strip, params.split(","))):
            for lane in lanes_of(parameter, self.market, lambda: self._hub.state.listed(self.market)) or ():
                left.pop(lane.key, None)
            self._say("success", f"unsubscribed to: {parameter}")
        self._change_lanes(left)

    def _change_lanes(self, lanes: dict[str, Lane]) -> None:
        clock = self._hub.state.clock()
        # What is due already goes by the old subscriptions; the new ones begin now.
        self.play(clock, patient=True)
        self.lanes, self._feed = lanes, None
        self._at, self._clock_changes = clock.now, clock.changes

    def _say(self, status: str, message: str) -> None:
        self.outbox.put(Outgoing(frame_of(_ENCODER.encode([Status(status, message)]))))

    async def _close(self, code: int) -> None:
        await self._send({"type": "websocket.close", "code": code})

    # The events

    def _current_feed(self) -> Feed:
        state = self._hub.state
        if self._feed is None or self._feed.version != state.version:
            self._feed = Feed(state, self.market, list(self.lanes.values()))
        return self._feed

    def _silent(self) -> bool:
        silence = self._silence
        if silence is None:
            return False
        over = silence.until is not None and time.monotonic() >= silence.until
        if over or not self._hub.faults.holds(silence.fault):
            self._silence, self._wire.muted = None, False
        return self._silence is not None

    def _send_events(self, events: list[Event]) -> None:
        """Send events up to the next fault of the connection, do what it says, and go on if that can be."""
        while (hit := self._hub.faults.interruption(self.market, events)) is not None:
            before, active = hit
            self._frames(events[:before])
            events = events[before:]
            fault = active.fault
            if fault.kind == "close_clean":
                self.outbox.put(Outgoing(close=fault.code))
            elif fault.kind == "close_unclean":
                self.outbox.put(Outgoing(reset=True))
            elif fault.kind == "silence":
                until = None if fault.seconds is None else time.monotonic() + fault.seconds
                self._silence, self._wire.muted = _Silence(active, until), not fault.pongs
            else:
                size = self._hub.settings.events_per_frame
                self.outbox.put(Outgoing(*_rendered(events[:size]), fault=fault))
                events = events[size:]
                if fault.kind == "slow_frames":
                    continue
                self.outbox.ended = True
            self._hub.stats.lose(len(events))
            return
        self._frames(events)

    def _frames(self, events: list[Event]) -> None:
        size = self._hub.settings.events_per_frame
        for at in range(0, len(events), size):
            self.outbox.put(Outgoing(*_rendered(events[at : at + size])))


def _rendered(events: list[Event]) -> tuple[bytes, Counter[str]]:
    payload: Any = [content for _, _, content in events]
    return frame_of(_ENCODER.encode(payload)), Counter([lane.key for _, lane, _ in events])

"""The client of the vendor's streams: connect, authenticate, subscribe, read, and come back for ever."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import NoReturn

import structlog
from pydantic import SecretStr

from market_pipeline.errors import VendorAuthError, VendorError, VendorRateLimited, VendorUnavailable
from market_pipeline.market.timeframes import to_ms
from market_pipeline.settings import StreamSettings
from market_pipeline.steady import SteadyClock, passed_s
from market_pipeline.vendors.polygon.auth import KEY_SETTING, BearerKey
from market_pipeline.vendors.polygon.redaction import redact
from market_pipeline.vendors.polygon.stream.events import Status, StreamTick, UnreadableFrame, decode_frame, ticks_of
from market_pipeline.vendors.polygon.stream.listener import StreamCounters, StreamListener
from market_pipeline.vendors.polygon.stream.names import PRIMARY_KIND, Topics
from market_pipeline.vendors.polygon.stream.watch import SilenceWatch
from market_pipeline.vendors.polygon.stream.wire import FAILURES, Wire

log = structlog.get_logger(__name__)

TOPICS_A_MESSAGE = 100
ASK_AGAIN = 3
SAY_AGAIN_S = 30.0
# A pong comes behind everything that the vendor had sent, but not behind what it was about to send: unlike an event, it
# says nothing of how far the feed behind it had come. So it proves less, by this much.
PONG_PROVES_LESS_MS = 750
# The millisecond under way and what has passed since are counted whole, so that a clock is never behind: by so much it
# may be ahead.
COUNTED_WHOLE_MS = 2


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class PolygonStream:
    """Keep one connection to one market of the vendor, and tell a listener what comes.

    alive_ms: everything that the vendor sent before this moment has been told: the time of an event, never later than
        its arrival, or 0.75 s before a ping was sent that has been answered.
    data_ms: the latest time of an event, likewise. frame_at: monotonic time of the last frame or pong.
    clock_error_ms: how far the machine's clock is ahead of the vendor's (behind: below 0), as far as the vendor says
        what time it is; 0 where they agree to the second.
    missing: topics asked for and not acknowledged; unacknowledged: those of them that are overdue.
    counters: since the client was made.
    """

    def __init__(
        self,
        url: str,
        api_key: SecretStr,
        topics: Topics,
        settings: StreamSettings,
        listener: StreamListener,
        *,
        is_open: Callable[[], bool] = lambda: True,
        clock: Callable[[], int] = _now_ms,
        replayed: bool = False,
    ) -> None:
        """Prepare a stream; nothing is sent yet.

        Args:
            is_open: says whether a market of the topics is open now.
            clock: the machine's (epoch ms), by which the stream's own is set whenever a connection opens.
            replayed: the clock is that of a replay: it may stand still and leap, and is the stream's.

        Raises:
            VendorAuthError: there is no key; the message names the setting.
        """
        BearerKey(api_key)  # refuses what no key can be
        self.url, self.topics = url, topics
        self._key = api_key
        self._settings = settings
        self._listener = listener
        self._wall = clock
        self._clock = clock if replayed else SteadyClock(clock())
        # A heartbeat shall have news.
        self._ping_s = settings.heartbeat_s / 2
        self._watch = SilenceWatch(settings.silence_s, is_open, soon_s=settings.stable_s)
        self._said: tuple[str, float] = ("", 0.0)
        self._begun: set[str] = set()
        self._opened_at: float | None = None
        self.connected = False
        self.alive_ms = self.data_ms = 0
        self.clock_error_ms = self._ahead_ms = 0
        self.frame_at = time.monotonic()
        self.missing: frozenset[str] = frozenset()
        self.unacknowledged: frozenset[str] = frozenset()
        self.counters = StreamCounters()

    def __repr__(self) -> str:
        return f"PolygonStream({self.url!r}, {len(self.topics.asked)} topics)"

    def now_ms(self) -> int:
        """Return the epoch ms of now, as the stream reckons."""
        return self._clock()

    async def run(self) -> NoReturn:
        """Stream until cancelled, with a new connection whenever one ends, for ever.

        Pauses between attempts grow from `backoff_initial_s` to `backoff_max_s`, half of each is jitter, and begin
        small again after a connection that lived for `stable_s`; after `max_connections` the pause is `cooldown_s`.

        Raises:
            VendorAuthError: the vendor refuses the key; the message names the setting, never the key.
        """
        settings, failures = self._settings, 0
        while True:
            self._opened_at = None
            try:
                await self._one_connection()
                error: Exception = VendorUnavailable("the connection ended")
            except VendorAuthError:
                raise
            except (*FAILURES, VendorError) as caught:
                error = caught
            lived = 0.0 if self._opened_at is None else time.monotonic() - self._opened_at
            failures = 0 if lived >= settings.stable_s else failures + 1
            pause = min(settings.backoff_max_s, settings.backoff_initial_s * 2 ** min(max(failures - 1, 0), 16))
            pause *= random.uniform(0.5, 1.0)
            if isinstance(error, VendorRateLimited):
                pause = settings.cooldown_s * random.uniform(1.0, 1.1)
            self._say_ended(error, lived, pause)
            await asyncio.sleep(pause)

    async def _one_connection(self) -> None:
        asked_at = passed_s()
        wire = await Wire.open(self.url, timeout_s=self._settings.handshake_timeout_s)
        try:
            self._set_clock(asked_at, wire.date)
            await self._authenticate(wire)
            await self._live(wire)
        finally:
            await wire.close()

    def _set_clock(self, asked_at: float, date: datetime | None) -> None:
        """Set the stream's clock by the machine's, or where that cannot be right by what the vendor says.

        It may be ahead, never behind: a session would begin before it did. A Date has whole seconds, and was made at
        some moment since the vendor was asked; so much less do pings prove then.
        """
        if not isinstance(self._clock, SteadyClock):
            return
        before = passed_s()  # a pause that comes now puts the clock ahead
        now_ms = self._wall()
        self.clock_error_ms, self._ahead_ms = 0, COUNTED_WHOLE_MS
        if date is not None:
            after = passed_s()
            lowest = to_ms(date)
            highest = lowest + 1000 + math.ceil((after - asked_at) * 1000)
            self.clock_error_ms = max(0, now_ms - highest) or min(0, now_ms - lowest)
            if self.clock_error_ms:
                now_ms, before, self._ahead_ms = highest, after, highest - lowest + COUNTED_WHOLE_MS
        self._clock.set(now_ms + 1, before)

    async def _authenticate(self, wire: Wire) -> None:
        try:
            async with asyncio.timeout(self._settings.handshake_timeout_s):
                await self._until(wire, "connected")
                await wire.send({"action": "auth", "params": self._key.get_secret_value()})
                await self._until(wire, "auth_success")
        except TimeoutError:
            raise VendorUnavailable("the vendor did not greet or did not answer the key in time") from None

    async def _until(self, wire: Wire, wanted: str) -> None:
        while True:
            for event in decode_frame(await wire.receive(), self.counters):
                if isinstance(event, Status):
                    self._judge(event)
                    if event.status == wanted:
                        return

    async def _live(self, wire: Wire) -> None:
        """Read until the connection ends; tell the listener of both ends."""
        now = self._clock() - self._ahead_ms  # certainly past
        self._opened_at = self.frame_at = time.monotonic()
        self._begun = set()
        self.alive_ms = self.data_ms = now
        self.missing, self.unacknowledged = frozenset(self.topics.asked), frozenset()
        self.counters.connects += 1
        self._watch.opened()
        self.connected = True
        self._listener.opened(self)
        cause = "disconnect"
        read = asyncio.create_task(self._read(wire))
        watch = asyncio.create_task(self._watch_over())
        tasks = (read, watch, asyncio.create_task(self._ask(wire)), asyncio.create_task(self._ping(wire)))
        try:
            # Asking and pinging just end when the connection is lost: the reader knows why.
            await asyncio.wait((read, watch), return_when=asyncio.FIRST_COMPLETED)
            if not read.done():
                cause = watch.result()
        finally:
            self.connected = False
            self.counters.ended[cause] += 1
            self._listener.closed(self, cause)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        raise VendorUnavailable(f"given up after {self._watch.bound_s:g} s without data ({cause})")

    async def _read(self, wire: Wire) -> NoReturn:
        """Parse and hand over: the vendor cuts off who reads slowly, so nothing else is awaited here."""
        while True:
            self._take(await wire.receive())

    def _take(self, frame: bytes) -> None:
        at_ms = self._clock()
        self.frame_at = time.monotonic()
        self.counters.frames += 1
        try:
            events = decode_frame(frame, self.counters)
        except UnreadableFrame as error:
            self.counters.unreadable += 1
            self._listener.unreadable(self, at_ms)
            self._say("stream_unreadable_frame", error=str(error), bytes=len(frame))
            return
        for event in events:
            if isinstance(event, Status):
                self._judge(event)
                self._acknowledge(event, at_ms)
        if ticks := ticks_of(events, self.topics.symbol_of, at_ms, self.counters):
            self._watch.data()
            self._begin_unacknowledged(ticks, at_ms)
            self._listener.ticks(ticks)
            self.data_ms = max(self.data_ms, min(at_ms, max(tick.ts_ms for tick in ticks)))
            self.alive_ms = max(self.alive_ms, self.data_ms)

    def _begin_unacknowledged(self, ticks: list[StreamTick], at_ms: int) -> None:
        """Take the first event of a topic for its acknowledgement: nobody sends what is not subscribed."""
        if len(self._begun) < len(self.topics.primary):
            kind = PRIMARY_KIND[self.topics.market]
            for symbol in {tick.symbol for tick in ticks if tick.kind == kind} - self._begun:
                self._begin(symbol, at_ms)

    def _acknowledge(self, status: Status, at_ms: int) -> None:
        for topic in self.topics.acknowledged(status.message) if status.status == "success" else ():
            self.missing -= {topic}
            self.unacknowledged -= {topic}
            if topic in self.topics.primary:
                self._begin(self.topics.asked[topic], at_ms)

    def _begin(self, symbol: str, at_ms: int) -> None:
        if symbol not in self._begun:
            self._begun.add(symbol)
            self._listener.subscribed(symbol, at_ms)

    def _judge(self, event: Status) -> None:
        """Raise what a status means for the connection, whenever it comes."""
        self.counters.statuses[event.status[:32]] += 1
        words = redact(event.message or event.status, self._key.get_secret_value())
        if event.status == "auth_failed":
            raise VendorAuthError(f"{self.url}: the vendor refuses the key, mend {KEY_SETTING}: {words}")
        if event.status == "max_connections":
            raise VendorRateLimited(f"{self.url}: the key has a connection already: {words}")
        if event.status == "auth_timeout":
            raise VendorUnavailable(f"{self.url}: the vendor waited too long for the key: {words}")
        if event.status not in {"connected", "auth_success", "success"}:
            self._say("stream_status", status=event.status[:32], message=words)

    async def _ask(self, wire: Wire) -> None:
        """Subscribe; name what is not acknowledged in time, and ask for it a few times more."""
        for attempt in range(1 + ASK_AGAIN):
            topics = [topic for topic in self.topics.asked if topic in self.missing]
            with suppress(*FAILURES):
                for batch in (topics[i : i + TOPICS_A_MESSAGE] for i in range(0, len(topics), TOPICS_A_MESSAGE)):
                    await wire.send({"action": "subscribe", "params": ",".join(batch)})
            await asyncio.sleep(self._settings.ack_timeout_s)
            self.unacknowledged = self.missing
            if not self.missing:
                break
            log.warning(
                "stream_subscriptions_not_acknowledged",
                url=self.url,
                missing=sorted(self.missing)[:50],
                count=len(self.missing),
                attempt=attempt + 1,
            )

    async def _ping(self, wire: Wire) -> None:
        """Prove a quiet stream alive."""
        with suppress(*FAILURES):
            while True:
                sent_ms = self._clock()
                await wire.ping()
                # Frames that came in the same bytes before the pong woke the reader first: let it take them first.
                await asyncio.sleep(0)
                self.counters.pongs += 1
                self.frame_at = time.monotonic()
                self.alive_ms = max(self.alive_ms, sent_ms - PONG_PROVES_LESS_MS - self._ahead_ms)
                await asyncio.sleep(self._ping_s)

    async def _watch_over(self) -> str:
        """Return the cause for which the connection is to be given up."""
        while True:
            await asyncio.sleep(min(1.0, self._settings.silence_s / 8))
            if time.monotonic() - self.frame_at > self._settings.silence_s:
                return "disconnect"  # not even a pong
            if self._watch.too_silent():
                return "silence"

    def _say_ended(self, error: Exception, lived: float, pause: float) -> None:
        text = redact(str(error) or type(error).__name__, self._key.get_secret_value())
        log.warning("stream_ended", url=self.url, error=text, lived_s=round(lived, 1), next_in_s=round(pause, 2))

    def _say(self, what: str, **facts: object) -> None:
        """Warn, the same thing not more than once in 30 seconds."""
        now = time.monotonic()
        if what != self._said[0] or now - self._said[1] > SAY_AGAIN_S:
            self._said = (what, now)
            log.warning(what, url=self.url, **facts)

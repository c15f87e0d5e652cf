"""The collector as a service: under its lease, one connection a market, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog

from market_pipeline.bus.envelope import now_ms
from market_pipeline.bus.lease import Lease
from market_pipeline.bus.losses import LossBucket, LossInterval, LossSink
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.spooling_ticks import SpoolingTicks
from market_pipeline.bus.tick_publisher import TickPublisher
from market_pipeline.errors import BusUnreachable, SettingsError, VendorAuthError
from market_pipeline.live.collector.health import CollectorHealth, State, problems_of, stream_health
from market_pipeline.live.collector.hours import MarketHours
from market_pipeline.live.collector.intake import Intake
from market_pipeline.live.collector.lanes import Lane
from market_pipeline.live.collector.outlet import Lanes, TickOutlet
from market_pipeline.live.loss_recorder import LossRecorder
from market_pipeline.live.terms import DRAIN_S, standby_problems, work_in_terms, work_on
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import to_ms
from market_pipeline.settings import Settings
from market_pipeline.tasks import end_tasks, unless, when
from market_pipeline.vendors.polygon.stream import MARKETS, PolygonStream, stream_url, topics_of
from market_pipeline.vendors.polygon.stream.names import PRIMARY_KIND

log = structlog.get_logger(__name__)

SETTLE_S = 30.0


class Collector:
    """Collect live quotes and trades of some instruments into TICKS.

    One collector at a time works for a `name`: a second one stands by until the first gives up its lease or loses it.
    """

    def __init__(
        self,
        bus: BusSession,
        settings: Settings,
        instruments: Sequence[Instrument],
        *,
        name: str = "default",
        losses: LossSink | None = None,
        outlet: TickOutlet | None = None,
        collector_id: str | None = None,
        clock: Callable[[], int] = now_ms,
        replayed: bool = False,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            bus: an open connection; the streams must exist.
            name: of the set of symbols, for the lease.
            losses: where losses are kept; default: the bucket `losses`.
            outlet: what takes the batches; default: TICKS, and the spool while NATS is away.
            collector_id: shown in batches and health; default: host, process and four random digits.
            clock: the machine's, epoch ms.
            replayed: the clock is that of a replay, which may stand still and leap with its readers.

        Raises:
            SettingsError: there are no instruments.
            VendorAuthError: there is no key; the message names the setting.
        """
        if not instruments:
            raise SettingsError("a collector needs at least one instrument")
        self._bus, self._settings, self._instruments, self._name = bus, settings, tuple(instruments), name
        self.collector_id = collector_id or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._clock, self._replayed = clock, replayed
        self._ticks = TickPublisher(bus)
        self._recorder = LossRecorder(losses or LossBucket(bus))
        self._spooling = None if outlet else SpoolingTicks(bus, settings, f"collector {name}", self._recorder.add)
        self._outlet: TickOutlet = outlet or self._spooling or self._ticks
        self._lease = Lease(
            bus,
            f"collector.{name}",
            self.collector_id,
            ttl_s=settings.stream.lease_ttl_s,
            work=work_on(self._instruments),
        )
        self._hours: dict[str, MarketHours] = {}
        self._state: State = "stopped"
        self._refused: dict[str, str] = {}
        # A listener is needed to check the key now: each term of the lease has an intake of its own.
        self._intake = self._new_intake()
        self._streams = self._new_streams()
        self._lanes = self._new_lanes()

    async def run(self, stop: asyncio.Event) -> None:
        """Collect, or stand by, until `stop` is set; then publish what waits, for 5 s at most, and give up the lease.

        Raises:
            VendorAuthError: the vendor refuses the key for every market.
        """
        await asyncio.to_thread(self._know_hours)
        try:
            await work_in_terms(stop, self._lease, self._recorder, self._term, self._enter)
        finally:
            if self._spooling is not None:
                await self._spooling.close()

    def _enter(self, state: State) -> None:
        self._state = state

    def health(self) -> CollectorHealth:
        """Return the state of now."""
        lanes, intake = self._lanes, self._intake
        waits_s = lanes.waits_s()
        streams = tuple(
            stream_health(
                each,
                self._market_open(each.topics.market),
                self._refused.get(each.topics.market, ""),
                intake.mute(each, self._settings.stream.mute_s, self._has_been_open),
            )
            for each in self._streams
        )
        return CollectorHealth(
            state=self._state,
            problems=(
                *problems_of(
                    self._state,
                    streams,
                    bus_connected=self._ticks.connected,
                    lease_held=self._lease.held,
                    waits_s=waits_s,
                    losses_waiting=self._recorder.waiting,
                    unhealthy_after_s=self._settings.live.unhealthy_after_s,
                ),
                *standby_problems(self._state, self._name, self._lease),
                *(self._spooling.problems() if self._spooling is not None else ()),
            ),
            name=self._name,
            collector_id=self.collector_id,
            epoch=self._lease.epoch,
            streams=streams,
            queue=intake.size,
            queue_limit=intake.limit,
            stuck_s=round(max(waits_s.values(), default=0.0), 3),
            batches=lanes.batches,
            ticks=lanes.ticks,
            heartbeats=lanes.heartbeats,
            dropped=intake.dropped,
            losses=dict(self._recorder.recorded),
            losses_waiting=self._recorder.waiting,
            gaps=tuple(intake.gaps),
            spool=self._spooling.facts() if self._spooling is not None else {},
        )

    async def _term(self, stop: asyncio.Event) -> None:
        """Collect while the lease is held."""
        self._refused.clear()
        self._intake = self._new_intake()
        self._streams = self._new_streams()
        self._lanes = self._new_lanes()
        ended = asyncio.Event()
        watch = [asyncio.create_task(when(event, ended)) for event in (stop, self._lease.lost)]
        try:
            if not await unless(ended, self._inherit()):
                return
            self._state = "running"
            streams = [asyncio.create_task(self._stream(each), name=f"stream {each.url}") for each in self._streams]
            lanes = [
                asyncio.create_task(self._lanes.run(lane), name=f"lane {lane.symbol}")
                for lane in self._intake.lanes.values()
            ]
            over = asyncio.create_task(ended.wait())
            try:
                await self._watch(streams, lanes, over)
                await end_tasks(streams)
                if not self._lease.lost.is_set() and not await self._lanes.drained(DRAIN_S):
                    log.warning("ticks_left_behind", waiting=self._intake.size)
            finally:
                await end_tasks([*streams, *lanes, over])
        finally:
            await end_tasks(watch)

    async def _watch(
        self, streams: list[asyncio.Task[None]], lanes: list[asyncio.Task[None]], over: asyncio.Task[Any]
    ) -> None:
        """Return when the term is over; raise what ends a task, and the refusal when no market is left."""
        running = {*streams, *lanes, over}
        while over in running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if not any(task in running for task in streams) and over in running:
                raise VendorAuthError("; ".join(self._refused.values()))

    async def _stream(self, stream: PolygonStream) -> None:
        try:
            await stream.run()
        except VendorAuthError as error:
            # The plan may lack one market only: the others go on, and health names this one.
            self._refused[stream.topics.market] = str(error)
            log.error("stream_refused", market=stream.topics.market, error=str(error))

    async def _inherit(self) -> None:
        """Learn from the last batch of each symbol up to where it is proven, whoever published it.

        What a predecessor left on this disk comes first: behind the first batch of ours, consumers would drop it.
        """
        if self._spooling is not None and not await self._spooling.settle(SETTLE_S):
            log.warning("collector_does_not_wait_for_spool", seconds=SETTLE_S)
        for symbol in self._intake.lanes:
            while True:
                try:
                    last = await self._ticks.last(symbol)
                    break
                except BusUnreachable as error:
                    log.warning("collector_waits_for_bus", error=str(error))
                    await asyncio.sleep(0.5)
            if last is None:
                continue
            self._intake.inherit(symbol, to_ms(last.alive_at), last.session_id)
            if last.lost_from is not None:
                # Perhaps it died between telling of this loss and recording it.
                self._recorder.add(LossInterval(symbol, last.lost_from, last.session_started, "lease"))

    def _new_intake(self) -> Intake:
        stream = self._settings.stream
        lanes = (Lane(each.key, each.calendar, PRIMARY_KIND[MARKETS[each.asset_class]]) for each in self._instruments)
        name = f"{self._lease.epoch:x}"  # of a lease there is each epoch once, so sessions need no longer name
        return Intake(lanes, stream.queue, stream.batch_ticks, name, self._recorder.add)

    def _new_streams(self) -> list[PolygonStream]:
        settings = self._settings
        return [
            PolygonStream(
                stream_url(settings.stream, settings.vendor, market),
                settings.vendor.api_key,
                topics_of(self._instruments, market, settings.stream.separator),
                settings.stream,
                self._intake,
                is_open=partial(self._market_open, market),
                clock=self._clock,
                replayed=self._replayed,
            )
            for market in dict.fromkeys(MARKETS[each.asset_class] for each in self._instruments)
        ]

    def _new_lanes(self) -> Lanes:
        return Lanes(
            self._intake,
            self._outlet,
            self._lease,
            self._settings.stream,
            self._hours_of,
            self.collector_id,
            self._clock,
        )

    def _market_open(self, market: str) -> bool:
        calendars = {each.calendar for each in self._instruments if MARKETS[each.asset_class] == market}
        at_ms = self._clock()
        return any(self._hours_of(name).is_open(at_ms) for name in calendars)

    def _has_been_open(self, lane: Lane) -> bool:
        """Say whether a symbol's market has been open for as long as a symbol may be mute."""
        hours, at_ms = self._hours_of(lane.calendar), self._clock()
        return hours.is_open(at_ms) and hours.is_open(at_ms - round(self._settings.stream.mute_s * 1000))

    def _hours_of(self, name: str) -> MarketHours:
        if name not in self._hours:
            self._hours[name] = MarketHours([name])
        return self._hours[name]

    def _know_hours(self) -> None:
        """Build the calendars, which takes a second for an exchange's."""
        for each in self._instruments:
            self._hours_of(each.calendar).is_open(self._clock())

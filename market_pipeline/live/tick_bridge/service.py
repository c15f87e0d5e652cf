"""The tick bridge as a service: under its lease, from TICKS into the tick store, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time

import structlog

from market_pipeline.breaker import Breakers
from market_pipeline.bus.consumer import BatchConsumer, Lag
from market_pipeline.bus.lease import Lease
from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.bus.streams import TICKS
from market_pipeline.errors import BusError, BusUnreachable, MarketPipelineError, StoreError, StreamMissing
from market_pipeline.live.service import Fact, ServiceHealth
from market_pipeline.live.tick_bridge.latest_writer import LatestWriter
from market_pipeline.live.tick_bridge.meter import Counts, Meter
from market_pipeline.live.tick_bridge.mover import TickMover
from market_pipeline.live.tick_bridge.patient_store import StoreAway, TermEnded
from market_pipeline.live.tick_bridge.source import StreamReplaced
from market_pipeline.settings import Settings
from market_pipeline.stores.ticks import TickStore
from market_pipeline.tasks import end_tasks, pause, unless, when

log = structlog.get_logger(__name__)

DURABLE = "ticks"
GATHER_S = 0.1
AGAIN_S = 1.0
LAG_EVERY_S = 2.0
RETENTION_EVERY_S = 6 * 3600.0
RETENTION_AGAIN_S = 300.0


class TickBridgeService:
    """Move ticks from TICKS into the tick store, each once, in the order of the stream.

    One bridge at a time works: a second one stands by until the first gives up its lease or loses it. Order needs that:
    a batch of an older collector that came after one of a newer would be fenced. It opens its own connections.
    """

    def __init__(
        self, settings: Settings, *, run_id: str = "", lease_ttl_s: float | None = None, gather_s: float = GATHER_S
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            run_id: of the Dagster run that runs it, for logs.
            lease_ttl_s: default `stream.lease_ttl_s`.
            gather_s: how long messages wait for company in one transaction.
        """
        self._settings, self._run_id, self._gather_s = settings, run_id, gather_s
        self._lease_ttl_s = lease_ttl_s or settings.stream.lease_ttl_s
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._state = "stopped"
        self._away = ""
        self._counts, self._meter = Counts(), Meter()
        self._breakers = Breakers(settings.breaker)
        self._lag: Lag | None = None
        self._lag_at = 0.0
        self._idle_at = time.monotonic()  # when nothing waited last
        self._mover: TickMover | None = None
        self._latest: LatestWriter | None = None
        self._layout = ""
        self._retention = ""

    @property
    def name(self) -> str:
        """The name under which it is run, shown and counted."""
        return "ticks"

    async def probe(self) -> dict[str, float]:
        """Prove that NATS stores and returns a message and that market_ticks takes and returns a tick; milliseconds.

        Raises:
            BusError, StoreError, SettingsError: of the part that cannot do its work.
        """
        began = time.monotonic()
        async with open_bus(self._settings.nats, "tick bridge probe") as bus:
            await bus.probe()
        nats_ms = (time.monotonic() - began) * 1000
        async with TickStore(self._settings.postgres) as store:
            return {"nats": nats_ms, "tick_store": await store.probe() * 1000}

    async def run(self, stop: asyncio.Event) -> None:
        """Move ticks, or stand by, until `stop` is set; then store what is in memory. Outages are waited for.

        Raises:
            BusAuthError, StoreAuthError, StoreQueryError, SettingsError: only a person can mend it.
        """
        self._state = "starting"
        try:
            while not stop.is_set():
                try:
                    async with open_bus(self._settings.nats, "tick bridge") as bus:
                        await self._over(bus, stop)
                except BusUnreachable as error:
                    log.warning("tick_bridge_waits_for_bus", error=str(error), run_id=self._run_id)
                    self._state, self._away = "waiting", str(error)
                    await pause(stop, AGAIN_S)
        except MarketPipelineError as error:
            self._state, self._away = "failed", str(error)
            raise
        self._state = "stopped"

    def health(self) -> ServiceHealth:
        """Return the state of now."""
        now, after = time.monotonic(), self._settings.live.unhealthy_after_s
        mover, store_problem = self._mover, self._mover.store_problem if self._mover else ""
        # Who stands by does not write, so it is not known what its breaker would say now.
        away = self._state != "standby" and (bool(store_problem) or self._breakers.of("tick_write").state != "closed")
        working = self._state in ("running", "waiting")
        stuck_s = now - max(self._idle_at, mover.progress_at if mover else 0.0) if working else 0.0
        problems = []
        if self._state == "failed" or (self._state == "waiting" and self._away):
            problems.append(self._away)
        if store_problem:
            problems.append(f"the tick store does not take ticks: {store_problem}")
        problems += self._breakers.problems() if away else []
        if stuck_s > after and self._lag is not None and self._lag.num_pending + self._lag.num_ack_pending:
            problems.append(f"ticks wait in the stream and none was stored for {stuck_s:.0f} s")
        elif working and now - self._lag_at > max(after, 5 * LAG_EVERY_S) and self._lag is not None:
            problems.append(f"NATS has not said for {now - self._lag_at:.0f} s how much waits")
        if self._retention:
            problems.append(f"old ticks are not dropped: {self._retention}")
        state = "waiting" if self._state in ("starting", "running") and away else self._state
        return ServiceHealth(self.name, state, tuple(problems), self._facts(away))

    def _facts(self, away: bool) -> dict[str, Fact]:
        counts, latency = self._counts, self._meter.latency_ms()
        facts: dict[str, Fact] = {name: getattr(counts, name) for name in counts.__dataclass_fields__}
        facts["ticks_per_s"] = round(self._meter.ticks_per_s(), 1)
        if latency is not None:
            facts["store_latency_p50_ms"], facts["store_latency_p99_ms"] = (round(each, 1) for each in latency)
        if self._lag is not None:
            facts["pending"] = self._lag.num_pending
            facts["ack_pending"] = self._lag.num_ack_pending
            facts["oldest_age_s"] = round(self._lag.oldest_age_s, 3)
        facts["postgres"] = "away" if away else "answers" if self._layout else "unknown"
        facts["layout"] = self._layout or "unknown"
        facts |= self._breakers.facts()
        facts["missed_symbols"] = self._mover.missed if self._mover else 0
        problem = self._latest.problem if self._latest else ""
        facts["latest_values"] = f"not written: {problem}" if problem else "written"
        return facts

    async def _over(self, bus: BusSession, stop: asyncio.Event) -> None:
        """Work over one connection, term after term."""
        lease = Lease(bus, "tick_bridge", self._holder, ttl_s=self._lease_ttl_s)
        store = TickStore(self._settings.postgres)
        try:
            while not stop.is_set():
                self._state, self._away = "standby", ""
                if not await unless(stop, lease.acquire()):
                    break
                try:
                    await self._term(bus, lease, store, stop)
                except StoreAway as error:
                    log.warning("tick_bridge_gives_back", error=str(error))
                except TermEnded:
                    log.warning("tick_bridge_ends_with_store_away")
                except (StreamReplaced, StreamMissing, BusUnreachable) as error:  # the next term makes a stream anew
                    if bus.nc.is_closed:
                        raise
                    log.warning("tick_bridge_begins_anew", error=str(error))
                    self._counts.reopened += 1
                    await pause(stop, AGAIN_S)
                finally:
                    self._mover = self._latest = None
                    await lease.release()
        finally:
            await store.close()

    async def _term(self, bus: BusSession, lease: Lease, store: TickStore, stop: asyncio.Event) -> None:
        """Move ticks while the lease is held."""
        ended = asyncio.Event()
        self._state = "starting"
        self._idle_at = time.monotonic()
        consumer = BatchConsumer(bus.nc, bus.js, TICKS, DURABLE)
        latest = self._latest = LatestWriter(bus)
        mover = self._mover = TickMover(
            bus,
            consumer,
            store,
            self._counts,
            self._meter,
            latest,
            self._breakers.of("tick_write"),
            name="tick_bridge",
            held=lambda: lease.held,
            ended=ended,
            gather_s=self._gather_s,
        )
        helpers = [asyncio.create_task(when(event, ended)) for event in (stop, lease.lost)]
        try:
            if not await unless(ended, mover.begin()):
                return
            self._state, self._layout = "running", store.layout.value
            log.info("tick_bridge_started", epoch=lease.epoch, run_id=self._run_id, layout=self._layout)
            helpers += [
                asyncio.create_task(latest.run()),
                asyncio.create_task(self._watch_lag(consumer)),
                asyncio.create_task(self._drop_old(store)),
            ]
            await mover.run()
        finally:
            await end_tasks(helpers)
            await consumer.close()

    async def _watch_lag(self, consumer: BatchConsumer) -> None:
        while True:
            try:
                self._lag = await consumer.pending()
                self._lag_at = time.monotonic()
                if not self._lag.num_pending + self._lag.num_ack_pending:
                    self._idle_at = self._lag_at
            except BusError as error:
                log.debug("tick_lag_unknown", error=str(error))
            await asyncio.sleep(LAG_EVERY_S)

    async def _drop_old(self, store: TickStore) -> None:
        """Drop days that are older than is kept, now and every few hours; nothing waits for it."""
        days = self._settings.live.ticks_kept_days
        while days is not None:
            try:
                await store.drop_older_than(days)
                self._retention = ""
            except StoreError as error:
                log.warning("old_ticks_not_dropped", error=str(error))
                self._retention = str(error)
            await asyncio.sleep(RETENTION_AGAIN_S if self._retention else RETENTION_EVERY_S)

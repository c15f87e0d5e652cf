"""The bridge as a service: LIVE, HISTORY and EXTERNAL, each in a lane of its own; none stands before another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import structlog

from market_pipeline.breaker import Breakers
from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.bus.spooling import SpoolingPublisher, spooling
from market_pipeline.bus.streams import EXTERNAL, HISTORY, LIVE
from market_pipeline.instruments_file import load_instruments
from market_pipeline.live.bridge import BridgeWorker
from market_pipeline.live.bridge_lane import Lane, LaneParts, LaneSpec
from market_pipeline.live.connected import Connected
from market_pipeline.live.external_bridge import ExternalWorker
from market_pipeline.live.service import Fact, ServiceHealth
from market_pipeline.live.worker import StreamWorker
from market_pipeline.settings import Settings
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import connect as connect_store
from market_pipeline.stores.clickhouse import probe as probe_store
from market_pipeline.stores.external import ExternalStore
from market_pipeline.stores.ledgers import IngestLedger
from market_pipeline.stores.migrations import apply
from market_pipeline.stores.seconds import AllBarStore
from market_pipeline.tasks import end_tasks

log = structlog.get_logger(__name__)

# A live flush comes within a few milliseconds; longer would only be added to every bar's latency.
LIVE_GATHER_S, LIVE_QUIET_S = 0.02, 0.008
LIVE_GROUP_BATCHES = 256
# One group compares and inserts while the ledger of the one before is written, and a third waits for neither.
LIVE_GROUPS = 3


class BridgeService:
    """Store what LIVE, HISTORY and EXTERNAL bring, for as long as it runs; any number of bridges may run at once.

    Each stream has a connection to NATS, a client of ClickHouse and threads of its own. HISTORY is served beside the
    workers that historical runs bring along, so that what any publisher left there is stored without a run. What dead
    processes left in the spool is published.
    """

    def __init__(self, settings: Settings, *, run_id: str = "") -> None:
        """Prepare; nothing is opened yet. `run_id` is shown in the connections' names and in the facts."""
        self._settings, self._run_id = settings, run_id
        schema = asyncio.Lock()
        label = f"bridge {run_id}".strip()
        self._breakers = Breakers(settings.breaker)
        self._lanes = [Lane(spec, settings, label, schema, self._breakers) for spec in LANES]
        self._spool_bus = Connected(settings.nats, f"{label} spool")
        self._spooling: SpoolingPublisher | None = None
        self._running = self._stopping = False
        self._failed = False

    @property
    def name(self) -> str:
        """The name of the service."""
        return "bridge"

    async def probe(self) -> dict[str, float]:
        """Prove that ClickHouse and JetStream write and read, apply migrations; return milliseconds by part.

        Raises:
            StoreError, BusError, SettingsError, InstrumentsFileError: of the part that cannot do its work.
        """
        load_instruments(self._settings)
        client = await asyncio.to_thread(connect_store, self._settings.clickhouse)
        try:
            took = {"clickhouse": await _timed(asyncio.to_thread(probe_store, client))}
            took["schema"] = await _timed(asyncio.to_thread(apply, client))
        finally:
            client.close()
        async with open_bus(self._settings.nats, "bridge probe") as bus:
            took["nats"] = await _timed(bus.probe())
            await bus.ensure_streams()
        return took

    async def run(self, stop: asyncio.Event) -> None:
        """Store batches until `stop` is set, then finish those in hand. What is away is waited for.

        Raises:
            MarketPipelineError: terminal, such as a refused password; what is in the streams stays there.
        """
        self._running, self._failed, ended = True, False, asyncio.Event()
        lanes = [asyncio.create_task(lane.run(ended), name=f"lane {lane.spec.stream}") for lane in self._lanes]
        lanes.append(asyncio.create_task(self._drain_spool(ended), name="spool"))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({*lanes, stopped}, return_when=asyncio.FIRST_COMPLETED)
            ended.set()
            for result in await asyncio.gather(*lanes, return_exceptions=True):
                if isinstance(result, BaseException):
                    self._failed = True
                    raise result
        finally:
            self._running = False
            ended.set()
            await end_tasks((*lanes, stopped))
            log.info("bridge_stopped", **self._totals())

    def health(self) -> ServiceHealth:
        """Return the state of now.

        Facts of each stream begin with its name in small letters: live_pending, live_unacknowledged, live_oldest_s
        (age of the oldest batch that is not stored), live_stuck_s, live_batches, live_rows, live_inserts,
        live_dead_letters, live_outages, live_given_back, live_reopened and so on. Those of its breaker to ClickHouse
        are named breaker_insert_live…, those of the spool spool_….
        """
        problems = [text for lane in self._lanes for text in lane.problems(self._settings.live.unhealthy_after_s)]
        if not self._running and not problems:
            problems = ["not running"]
        problems += self._breakers.problems()
        facts: dict[str, Fact] = {"run_id": self._run_id} if self._run_id else {}
        for lane in self._lanes:
            facts |= lane.facts()
        facts |= self._breakers.facts()
        if self._spooling is not None:
            problems += self._spooling.problems()
            facts |= self._spooling.facts()
        waits = dict.fromkeys(lane.waits_for for lane in self._lanes if lane.waits_for)
        if waits and self._running:
            facts["waits_for"] = "; ".join(waits)
        return ServiceHealth(self.name, self._state(), tuple(problems), facts)

    async def _drain_spool(self, stop: asyncio.Event) -> None:
        """Publish what dead processes left on disk, over a connection of its own; without NATS it waits for ever."""

        async def drain(bus: BusSession) -> None:
            async with spooling(bus, self._settings, self.name) as self._spooling:
                await stop.wait()

        await self._spool_bus.run(stop, drain)

    def _state(self) -> str:
        if self._failed or any(lane.failed for lane in self._lanes):
            return "failed"
        if not self._running:
            return "stopped"
        if any(lane.waits_for for lane in self._lanes):
            return "waiting"
        return "running" if all(lane.open for lane in self._lanes) else "starting"

    def _totals(self) -> dict[str, int]:
        return {
            name: sum(getattr(lane.stats, name) for lane in self._lanes)
            for name in ("batches", "rows", "dead_letters", "outages")
        }


def _live(parts: LaneParts) -> StreamWorker:
    return BridgeWorker(
        parts.consumer,
        AllBarStore(parts.client),
        IngestLedger(parts.client),
        parts.bus,
        max_group_batches=LIVE_GROUP_BATCHES,
        groups_in_flight=LIVE_GROUPS,
        gather_s=LIVE_GATHER_S,
        quiet_s=LIVE_QUIET_S,
        merge_lines=True,
        executor=parts.threads,
        symbols=parts.symbols,
        stats=parts.stats,
        breaker=parts.breaker,
    )


def _history(parts: LaneParts) -> StreamWorker:
    return BridgeWorker(
        parts.consumer,
        BarStore(parts.client),
        IngestLedger(parts.client),
        parts.bus,
        executor=parts.threads,
        symbols=parts.symbols,
        stats=parts.stats,
        breaker=parts.breaker,
    )


def _external(parts: LaneParts) -> StreamWorker:
    return ExternalWorker(
        parts.consumer,
        ExternalStore(parts.client),
        IngestLedger(parts.client),
        parts.bus,
        executor=parts.threads,
        stats=parts.stats,
        breaker=parts.breaker,
    )


LANES = (LaneSpec(LIVE, LIVE_GROUPS + 1, _live), LaneSpec(HISTORY, 2, _history), LaneSpec(EXTERNAL, 1, _external))


async def _timed(awaitable: Awaitable[object]) -> float:
    started = time.perf_counter()
    await awaitable
    return round((time.perf_counter() - started) * 1000, 1)

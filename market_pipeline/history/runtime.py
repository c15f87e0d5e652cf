"""Everything that one historical run needs, opened, probed, and closed again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from market_pipeline.breaker import Breakers
from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.bus.spooling import spooling
from market_pipeline.bus.streams import HISTORY
from market_pipeline.errors import BusError
from market_pipeline.history.gather import Gather
from market_pipeline.history.tracker import Tracker
from market_pipeline.instruments_file import load_instruments
from market_pipeline.live.bridge import BridgeWorker
from market_pipeline.live.worker import insert_breaker
from market_pipeline.market.instruments import Instruments
from market_pipeline.settings import Settings
from market_pipeline.stores import prepare
from market_pipeline.stores.bar_facts import BarFacts
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import connect as connect_store
from market_pipeline.stores.clickhouse import probe as probe_store
from market_pipeline.stores.ledgers import GapLedger, IngestLedger, VendorRequestLedger, VendorRequestRow
from market_pipeline.stores.underived import Underived
from market_pipeline.tasks import end_tasks
from market_pipeline.vendors.polygon import PolygonClient

log = structlog.get_logger(__name__)

Clock = Callable[[], datetime]
FINISH_S = 20.0


def utc_now() -> datetime:
    """Return the wall clock in UTC."""
    return datetime.now(UTC)


@dataclass
class Runtime:
    """The open parts of a run. `vendor` is None for a run that only derives; `landed` writes checkpoints."""

    settings: Settings
    instruments: Instruments
    run_id: str
    root_run_id: str
    clock: Clock
    vendor: PolygonClient | None
    bars: BarStore
    facts: BarFacts
    requests: VendorRequestLedger
    gaps: GapLedger
    underived: Underived
    ingest: IngestLedger
    bus: BusSession
    tracker: Tracker
    landed: Gather[VendorRequestRow, None]
    probes_ms: dict[str, float]


@asynccontextmanager
async def open_runtime(
    settings: Settings,
    *,
    run_id: str,
    root_run_id: str,
    vendor: bool = True,
    probe_vendor: bool = True,
    live: bool = False,
    clock: Clock = utc_now,
    breakers: Breakers | None = None,
) -> AsyncIterator[Runtime]:
    """Open the bus, the store and (unless told otherwise) the vendor; probe each before the first request.

    `probe_vendor` False is for what has work to do while the vendor is away. A bridge worker runs inside, so that a run
    depends on no other process to get its batches stored. With `live` there is none: batches go to LIVE, unthrottled,
    and whichever bridge stored the live minutes stores what is made of them. `breakers` of the edges publish, insert
    and vendor are those of a service that opens one runtime after another; default: the run's own.

    Raises:
        The typed error of the part that cannot do its work.
    """
    instruments = load_instruments(settings)
    breakers = breakers or Breakers(settings.breaker)
    probes: dict[str, float] = {}
    label = f"{'derived' if live else 'history'} {run_id}"
    async with AsyncExitStack() as stack:
        client = await asyncio.to_thread(connect_store, settings.clickhouse)
        stack.callback(client.close)
        probes["clickhouse"] = await _timed(asyncio.to_thread(probe_store, client))
        await asyncio.to_thread(prepare, client, settings)

        bus = await stack.enter_async_context(open_bus(settings.nats, label))
        probes["nats"] = await _timed(bus.probe())

        polygon: PolygonClient | None = None
        if vendor:
            polygon = await stack.enter_async_context(
                PolygonClient(settings.vendor, bus.rate_gate(settings.vendor), clock, breakers)
            )
            if probe_vendor:
                probes["vendor"] = await _timed(polygon.probe())
        log.info("probed", run_id=run_id, **{f"{name}_ms": round(ms, 1) for name, ms in probes.items()})

        bars, ingest = BarStore(client), IngestLedger(client)
        await bus.ensure_streams()  # as late as this: NATS may lose its store while the vendor is asked
        if not live:
            consumer = await stack.enter_async_context(bus.consumer(HISTORY))
            bridge = BridgeWorker(
                consumer, bars, ingest, bus, symbols=frozenset(instruments.keys), breaker=insert_breaker(breakers)
            )
            stop = asyncio.Event()
            worker = asyncio.create_task(bridge.run(stop))
            stack.push_async_callback(_stop, worker, stop)
        publisher = await stack.enter_async_context(spooling(bus, settings, label, breakers))
        tracker = Tracker(
            bus,
            ingest,
            bars,
            publisher,
            run_id=run_id,
            max_unresolved=settings.history.max_unresolved_batches,
            drain_timeout_s=settings.history.drain_timeout_s,
            spool_wait_s=settings.spool.wait_s,
            live=live,
        )
        await stack.enter_async_context(tracker.running())
        requests = VendorRequestLedger(client)

        async def record(rows: list[VendorRequestRow]) -> list[None]:
            await asyncio.to_thread(requests.record, rows)
            return [None] * len(rows)

        yield Runtime(
            settings=settings,
            instruments=instruments,
            run_id=run_id,
            root_run_id=root_run_id,
            clock=clock,
            vendor=polygon,
            bars=bars,
            facts=BarFacts(client),
            requests=requests,
            landed=Gather(record),
            gaps=GapLedger(client),
            underived=Underived(client),
            ingest=ingest,
            bus=bus,
            tracker=tracker,
            probes_ms=probes,
        )


async def _timed(awaitable: object) -> float:
    started = time.perf_counter()
    await awaitable  # type: ignore[misc]
    return (time.perf_counter() - started) * 1000


async def _stop(worker: asyncio.Task[None], stop: asyncio.Event) -> None:
    stop.set()
    try:
        await asyncio.wait((worker,), timeout=FINISH_S)
    finally:
        await end_tasks((worker,))
    if not worker.cancelled() and (error := worker.exception()) is not None:
        if not isinstance(error, BusError):
            raise error
        # The connection is closed for good: the run's own publishing has said so.
        log.warning("bridge_ended_early", error=str(error))

"""The collector against the simulator: what it lacks of what the vendor had lies in the losses that it recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from market_pipeline.bus.connection import connect
from market_pipeline.bus.losses import LossBucket
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import ensure_streams
from market_pipeline.bus.tick_envelope import LOSS_MARGIN
from market_pipeline.live.collector import Collector
from market_pipeline.live.collector.hours import MarketHours
from market_pipeline.live.collector_service import collector_facts
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import from_ms, to_ms
from market_pipeline.settings import Settings, VendorSettings
from market_pipeline.simulator.server import SimulatorThread, start_in_thread
from market_pipeline_tests.live.collecting import BTC, ETH, EUR, instrument, stored, until
from market_pipeline_tests.servers import NatsProcess
from market_pipeline_tests.vendors.stream_vendor import quick_stream

GBP = instrument("GBP/USD", "forex", "C:GBPUSD")
PER_SECOND = 200


@pytest.fixture
def simulator() -> Iterator[SimulatorThread]:
    with start_in_thread() as running:
        yield running


@pytest.fixture
async def bus() -> AsyncIterator[BusSession]:
    with NatsProcess() as server:
        nc = await connect(server.settings, "test")
        await ensure_streams(nc.jetstream(), scale=1 / 64)
        yield BusSession(nc, nc.jetstream())
        await nc.close()


def vendor_quotes(
    simulator: SimulatorThread, pair: str, start: datetime, end: datetime
) -> list[tuple[int, float, float]]:
    """Return what the vendor had in [start, end), as REST tells it: (ms, bid, ask)."""
    rows: list[dict[str, Any]] = []
    parameters = {
        "timestamp.gte": to_ms(start) * 1_000_000,
        "timestamp.lt": to_ms(end) * 1_000_000,
        "limit": 50_000,
        "order": "asc",
    }
    headers = {"Authorization": f"Bearer {simulator.api_key}"}
    with httpx.Client(base_url=simulator.base_url, headers=headers, trust_env=False, timeout=20) as http:
        rows = http.get(f"/v3/quotes/C:{pair}", params=parameters).json()["results"]
    return sorted((row["participant_timestamp"] // 1_000_000, row["bid_price"], row["ask_price"]) for row in rows)


@asynccontextmanager
async def collecting(
    simulator: SimulatorThread, bus: BusSession, instruments: Sequence[Instrument], **stream: Any
) -> AsyncIterator[Collector]:
    """Run a collector of the simulator's streams; its ticks are published when the context ends."""
    settings = Settings(
        vendor=VendorSettings(base_url=simulator.base_url, api_key=SecretStr(simulator.api_key)),
        stream=quick_stream("", **{"heartbeat_s": 0.1, "batch_ms": 10, **stream}),
    )
    collector, stop = Collector(bus, settings, instruments), asyncio.Event()
    task = asyncio.create_task(collector.run(stop))
    try:
        yield collector
        stop.set()
        await asyncio.wait_for(task, 20)
    finally:
        simulator.control.load([], 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_missing_lies_in_the_losses(simulator: SimulatorThread, bus: BusSession) -> None:
    simulator.control.load(["C:EURUSD", "C:GBPUSD"], PER_SECOND)
    async with collecting(simulator, bus, [EUR, GBP], silence_s=1.0) as collector:
        await until(lambda: collector.health().ticks > PER_SECOND)
        for kind in ("close_clean", "close_unclean", "half_frame", "max_connections", "duplicates"):
            options: dict[str, Any] = {"times": 5} if kind == "duplicates" else {}
            simulator.control.stream_fault(kind, **options)
            if kind == "max_connections":
                simulator.control.stream_fault("close_unclean", after_events=50)
            ticks = collector.health().ticks
            await until(lambda ticks=ticks: collector.health().ticks > ticks + PER_SECOND // 2, timeout=30)
        await until(lambda: not collector.health().gaps)
    assert collector.health().streams[0].connects >= 5
    losses = await LossBucket(bus).all()
    for symbol, pair in (("EURUSD", "EUR-USD"), ("GBPUSD", "GBP-USD")):
        batches = await stored(bus, symbol)
        rows = [row for each in batches for row in each.frame.select("ts", "bid", "ask").iter_rows()]
        start = min(each.headers.session_started for each in batches)
        end = max(each.headers.alive_at for each in batches)
        had = [
            quote
            for quote in await asyncio.to_thread(vendor_quotes, simulator, pair, start, end)
            if to_ms(start) < quote[0] < to_ms(end)
        ]
        assert len(had) > PER_SECOND
        got = {(to_ms(ts), bid, ask) for ts, bid, ask in rows}
        missing = [quote for quote in had if quote not in got]
        # Losses begin early, for what comes late: nothing here comes so late that it needs all of it.
        early = LOSS_MARGIN / 2
        covered = [(loss.start + early, loss.end) for loss in losses if loss.symbol == symbol]
        unexplained = [
            quote for quote in missing if not any(begin <= from_ms(quote[0]) <= over for begin, over in covered)
        ]
        assert unexplained == []
        assert len(covered) >= 4
        assert missing, "the faults have cost something"
        invented = [quote for quote in got if to_ms(start) < quote[0] < to_ms(end) and quote not in set(had)]
        assert invented == []
        so_far: set[tuple[int, float, float]] = set()
        for each in batches:
            so_far |= {(to_ms(ts), bid, ask) for ts, bid, ask in each.frame.select("ts", "bid", "ask").iter_rows()}
            begin, proven = to_ms(each.headers.session_started), to_ms(each.headers.proven_until)
            assert [quote for quote in had if begin < quote[0] < proven and quote not in so_far] == []


async def test_an_unknown_ticker_is_acknowledged_and_named_as_mute(simulator: SimulatorThread, bus: BusSession) -> None:
    simulator.control.set_unknown("X:ETHUSD")
    simulator.control.load(["X:BTCUSD"], PER_SECOND)
    async with collecting(simulator, bus, [BTC, ETH], mute_s=1.0) as collector:
        await until(lambda: collector.health().ticks > PER_SECOND // 2)
        assert collector.health().healthy, "it has a while to say something"
        await until(lambda: collector.health().streams[0].mute)
        health = collector.health()
        assert health.streams[0].acks_missing == (), "the vendor acknowledges what it does not know"
        assert health.problems == ("crypto: 1 symbols mute since they were subscribed: ETHUSD",)
        assert collector_facts(health)["mute"] == "ETHUSD"
        simulator.control.set_unknown()
        simulator.control.load(["X:BTCUSD", "X:ETHUSD"], PER_SECOND)
        await until(lambda: collector.health().healthy)
        assert "mute" not in collector_facts(collector.health())


async def test_symbols_of_a_closed_market_or_of_a_mute_connection_are_not_named(
    simulator: SimulatorThread, bus: BusSession
) -> None:
    simulator.control.set_unknown("X:BTCUSD", "X:ETHUSD")
    async with collecting(simulator, bus, [BTC, ETH], mute_s=0.2) as collector:
        await until(lambda: collector.health().state == "running" and collector.health().streams[0].connected)
        await asyncio.sleep(1.0)
        assert collector.health().healthy, "where all are mute, silence is watched"
    closed = ETH.model_copy(update={"calendar": "forex"})
    simulator.control.set_unknown("X:ETHUSD")
    simulator.control.load(["X:BTCUSD"], PER_SECOND)
    async with collecting(simulator, bus, [BTC, closed], mute_s=0.2) as collector:
        collector._hours["forex"] = MarketHours([])
        await until(lambda: collector.health().ticks > PER_SECOND)
        assert collector.health().healthy

"""The collector against the simulator: what it lacks of what the vendor had lies in the losses that it recorded."""

from __future__ import annotations

import asyncio
from collections import Counter
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
from market_pipeline.errors import VendorAuthError
from market_pipeline.live.collector import Collector
from market_pipeline.live.collector.hours import MarketHours
from market_pipeline.live.collector_service import collector_facts
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import from_ms, to_ms
from market_pipeline.settings import Settings, VendorSettings
from market_pipeline.simulator.server import SimulatorThread, start_in_thread
from market_pipeline_tests.live.collecting import BTC, ETH, EUR, Seen, instrument, stored, until
from market_pipeline_tests.servers import NatsProcess
from market_pipeline_tests.vendors.stream_vendor import quick_stream

GBP = instrument("GBP/USD", "forex", "C:GBPUSD")
PER_SECOND = 200
DUPLICATES = 5
FAULTS: dict[str, dict[str, Any]] = {
    "close_clean": {},
    "close_unclean": {},
    "half_frame": {},
    "auth_timeout": {"seconds": 0.1},
    "max_connections": {},
    "silence": {"seconds": 60.0},  # far longer than it is borne
    "duplicates": {"times": DUPLICATES},
}
Quote = tuple[int, float, float]


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


def vendor_quotes(simulator: SimulatorThread, pair: str, start: datetime, end: datetime) -> list[Quote]:
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


def quotes_of(batches: Sequence[Seen]) -> list[Quote]:
    """Return the quotes of batches, in their order."""
    rows = [row for each in batches for row in each.frame.select("ts", "bid", "ask").iter_rows()]
    return [(to_ms(ts), bid, ask) for ts, bid, ask in rows]


def uncrossed(quote: Quote) -> Quote:
    """Return a quote with the lower price as its bid."""
    return (quote[0], *sorted(quote[1:]))  # type: ignore[return-value]


def inside(quote: Quote, spans: Sequence[tuple[datetime, datetime]]) -> bool:
    return any(begin <= from_ms(quote[0]) <= over for begin, over in spans)


async def had_and_got(
    simulator: SimulatorThread, batches: Sequence[Seen], pair: str
) -> tuple[list[Quote], list[Quote]]:
    """Return what the vendor had and what was kept, between the first session and the last sign of life."""
    start = min(each.headers.session_started for each in batches)
    end = max(each.headers.alive_at for each in batches)
    begin, over = to_ms(start), to_ms(end)
    had = await asyncio.to_thread(vendor_quotes, simulator, pair, start, end)
    return (
        [quote for quote in had if begin < quote[0] < over],
        [quote for quote in quotes_of(batches) if begin < quote[0] < over],
    )


def a_collector(
    simulator: SimulatorThread, bus: BusSession, instruments: Sequence[Instrument], **stream: Any
) -> Collector:
    settings = Settings(
        vendor=VendorSettings(base_url=simulator.base_url, api_key=SecretStr(simulator.api_key)),
        stream=quick_stream("", **{"heartbeat_s": 0.1, "batch_ms": 10, **stream}),
    )
    return Collector(bus, settings, instruments)


@asynccontextmanager
async def collecting(
    simulator: SimulatorThread, bus: BusSession, instruments: Sequence[Instrument], **stream: Any
) -> AsyncIterator[Collector]:
    """Run a collector of the simulator's streams; its ticks are published when the context ends."""
    collector, stop = a_collector(simulator, bus, instruments, **stream), asyncio.Event()
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
    # Silence is watched in market hours: a test may run at any.
    always = [each.model_copy(update={"calendar": "crypto"}) for each in (EUR, GBP)]
    async with collecting(simulator, bus, always, silence_s=1.0) as collector:
        await until(lambda: collector.health().ticks > PER_SECOND)
        for kind, options in FAULTS.items():
            simulator.control.stream_fault(kind, **options)
            if kind in {"auth_timeout", "max_connections"}:
                simulator.control.stream_fault("close_unclean", after_events=50)
            ticks = collector.health().ticks
            await until(lambda ticks=ticks: collector.health().ticks > ticks + PER_SECOND // 2, timeout=30)
        await until(lambda: not collector.health().gaps)
    assert collector.health().streams[0].connects >= 7
    losses = await LossBucket(bus).all()
    repeated = 0
    for symbol, pair in (("EURUSD", "EUR-USD"), ("GBPUSD", "GBP-USD")):
        batches = await stored(bus, symbol)
        had, got = await had_and_got(simulator, batches, pair)
        assert len(had) > PER_SECOND
        assert got == sorted(got, key=lambda quote: quote[0]), "in the order in which they were sent"
        missing = Counter(had) - Counter(got)
        # Losses begin early, for what comes late: nothing here comes so late that it needs all of it.
        early = LOSS_MARGIN / 2
        covered = [(loss.start + early, loss.end) for loss in losses if loss.symbol == symbol]
        assert [quote for quote in missing if not inside(quote, covered)] == []
        assert len(covered) >= 4
        assert {"disconnect", "silence"} <= {loss.cause for loss in losses if loss.symbol == symbol}
        assert missing, "the faults have cost something"
        more = Counter(got) - Counter(had)
        assert set(more) <= set(had), "nothing is invented"
        repeated += more.total()
        # A silent connection answers pings: what it seemed to prove is taken back by the loss.
        silences = [(loss.start, loss.end) for loss in losses if (loss.symbol, loss.cause) == (symbol, "silence")]
        so_far: Counter[Quote] = Counter()
        for each in batches:
            so_far.update(quotes_of([each]))
            begin, proven = to_ms(each.headers.session_started), to_ms(each.headers.proven_until)
            claimed = Counter(quote for quote in had if begin < quote[0] < proven and not inside(quote, silences))
            assert claimed - so_far == Counter()
    assert repeated == DUPLICATES, "what the vendor sends twice is kept twice: real repeats look the same"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("slow_frames", {"seconds": 1.0, "pieces": 20}),
        ("out_of_order", {"times": 20}),
        ("late", {"times": 20, "seconds": 0.5}),
        ("crossed", {"times": 20}),
        ("burst", {"times": 2, "count": 150}),
    ],
)
async def test_what_comes_oddly_is_kept_each_once_and_costs_nothing(
    kind: str, options: dict[str, Any], simulator: SimulatorThread, bus: BusSession
) -> None:
    simulator.control.load(["C:EURUSD"], PER_SECOND)
    async with collecting(simulator, bus, [EUR], silence_s=5.0) as collector:
        await until(lambda: collector.health().ticks > PER_SECOND // 2)
        simulator.control.stream_fault(kind, **options)
        await until(lambda: simulator.control.stream_faults()[0]["used"] == options.get("times", 1))
        ticks = collector.health().ticks
        await until(lambda: collector.health().ticks > ticks + PER_SECOND)
        health = collector.health()
        assert (health.streams[0].connects, health.dropped, health.problems) == (1, 0, ())
    batches = await stored(bus, "EURUSD")
    assert len({each.headers.session_id for each in batches}) == 1
    assert await LossBucket(bus).all() == []
    had, got = await had_and_got(simulator, batches, "EUR-USD")
    exchanged = [quote for quote in got if quote[1] > quote[2]]
    assert Counter(map(uncrossed, got)) == Counter(map(uncrossed, had))
    assert (len(exchanged) >= 20) == (kind == "crossed")
    overtaken = got != sorted(got, key=lambda quote: quote[0])
    assert overtaken == (kind in {"out_of_order", "late"})


async def test_a_refused_key_ends_it_and_names_the_setting(simulator: SimulatorThread, bus: BusSession) -> None:
    simulator.control.stream_fault("auth_failed")
    with pytest.raises(VendorAuthError, match="POLYGON_API_KEY"):
        await asyncio.wait_for(a_collector(simulator, bus, [BTC]).run(asyncio.Event()), 20)
    assert simulator.control.stream_stats()["sessions"]["auth_failed"] == 1, "it is not tried again"


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

"""What the collector's tests share: a collector between a vendor of streams and a real NATS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl
from nats.js.errors import NotFoundError
from pydantic import SecretStr

from market_pipeline.bus.connection import connect
from market_pipeline.bus.losses import LossBucket, LossInterval
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import TICKS
from market_pipeline.bus.tick_envelope import TickHeaders, decode_tick_batch
from market_pipeline.errors import MarketPipelineError
from market_pipeline.live.collector import Collector
from market_pipeline.market.instruments import AssetClass, Instrument
from market_pipeline.settings import LiveSettings, Settings, SpoolSettings, VendorSettings
from market_pipeline_tests.servers import NatsProcess
from market_pipeline_tests.vendors.stream_vendor import KEY, StreamVendor, quick_stream


def instrument(symbol: str, asset_class: AssetClass, ticker: str) -> Instrument:
    """Return an instrument; crypto trades at every hour at which a test may run."""
    return Instrument(
        symbol=symbol,
        asset_class=asset_class,
        vendor_ticker=ticker,
        calendar=asset_class,
        history_start=date(2020, 1, 1),
    )


BTC = instrument("BTC/USD", "crypto", "X:BTCUSD")
ETH = instrument("ETH/USD", "crypto", "X:ETHUSD")
EUR = instrument("EUR/USD", "forex", "C:EURUSD")


def trade(number: int, pair: str = "BTC-USD", at_ms: int | None = None) -> dict[str, Any]:
    """Return a trade of now whose price is its number."""
    at_ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
    return {"ev": "XT", "pair": pair, "p": number, "s": 0.5, "t": at_ms, "x": 1, "c": [2], "i": str(number), "r": at_ms}


@dataclass(frozen=True)
class Seen:
    """One message of TICKS."""

    seq: int
    headers: TickHeaders
    frame: pl.DataFrame


@dataclass
class World:
    """A collector that runs."""

    vendor: StreamVendor
    bus: BusSession
    collector: Collector
    stop: asyncio.Event
    task: asyncio.Task[None]

    async def seen(self, symbol: str = "BTCUSD", *, heartbeats: bool = False) -> list[Seen]:
        """Return what TICKS holds of a symbol, in the order of the stream."""
        messages = await stored(self.bus, symbol)
        return [each for each in messages if heartbeats or each.headers.rows]

    async def prices(self, symbol: str = "BTCUSD") -> list[float]:
        """Return the prices that TICKS holds of a symbol, in the order of the stream."""
        return [price for each in await self.seen(symbol) for price in each.frame.get_column("price")]

    async def losses(self, count: int, timeout: float = 15.0) -> list[LossInterval]:
        """Wait until so many losses are recorded and return all."""
        end = time.monotonic() + timeout
        while True:
            losses = await LossBucket(self.bus).all()
            if len(losses) >= count:
                return losses
            assert time.monotonic() < end, f"{len(losses)} losses instead of {count}"
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        """Stop the collector and wait."""
        self.stop.set()
        await asyncio.wait_for(self.task, 20)


async def stored(bus: BusSession, symbol: str) -> list[Seen]:
    """Return what TICKS holds of a symbol."""
    messages, seq = [], 1
    while True:
        try:
            message = await bus.js.get_msg(TICKS, seq=seq, subject=f"market.{symbol}.tick", next=True)
        except NotFoundError:
            return messages
        headers = TickHeaders.from_nats(message.headers)
        messages.append(Seen(message.seq or 0, headers, decode_tick_batch(message.data or b"", headers)))
        seq = (message.seq or 0) + 1


async def until(condition: Callable[[], object], what: str = "it did not come to be", timeout: float = 15.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.005)


def settings(server: NatsProcess, vendor: StreamVendor, live: LiveSettings | None = None, **stream: Any) -> Settings:
    """Return settings of short pauses."""
    return Settings(
        live=live or LiveSettings(),
        nats=server.settings,
        vendor=VendorSettings(base_url="http://127.0.0.1:9", api_key=SecretStr(KEY)),
        stream=quick_stream(vendor.url, **stream),
        spool=SpoolSettings(folder=server.home / "spool", min_free_bytes=0),
    )


@asynccontextmanager
async def collecting(
    server: NatsProcess,
    vendor: StreamVendor,
    *instruments: Instrument,
    options: dict[str, Any] | None = None,
    live: LiveSettings | None = None,
    **stream: Any,
) -> AsyncIterator[World]:
    """Run a collector of these instruments, by default BTC and ETH, over a connection of its own."""
    nc = await connect(server.settings, "collector")
    bus = BusSession(nc, nc.jetstream())
    collector = Collector(bus, settings(server, vendor, live, **stream), instruments or (BTC, ETH), **(options or {}))
    stop = asyncio.Event()
    task = asyncio.create_task(collector.run(stop))
    try:
        yield World(vendor, bus, collector, stop, task)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, MarketPipelineError):
            await task
        with suppress(Exception):
            await nc.close()

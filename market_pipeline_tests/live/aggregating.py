"""What the aggregator's tests share: batches of ticks in a real NATS, and the bars that come out of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl

from market_pipeline.bus.envelope import BatchHeaders, decode, now_ms
from market_pipeline.bus.publisher import Publisher
from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.bus.streams import LIVE
from market_pipeline.bus.subjects import market_subject
from market_pipeline.bus.tick_envelope import LATE, TickHeaders, new_batch_id
from market_pipeline.live.aggregator import Aggregator
from market_pipeline.market.aggregation import bars_from_quotes
from market_pipeline.market.bars import BAR_SCHEMA
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.ticks import TICK_SCHEMA
from market_pipeline.market.timeframes import from_ms
from market_pipeline_tests.bus.tick_batches import encode_tick_batch
from market_pipeline_tests.live.collecting import BTC, EUR
from market_pipeline_tests.servers import NatsProcess

MINUTE = 60_000
T0 = 1_709_542_800_000  # 2024-03-04 09:00 UTC, a Monday
GBP = EUR.model_copy(update={"symbol": "GBP/USD", "vendor_ticker": "C:GBPUSD", "partition": "GBPUSD"})
COLUMNS = ["ts", "open", "high", "low", "close", "volume", "trades"]

Row = tuple[int, float, float]


def quotes(rows: Sequence[Row], symbol: str = "EURUSD") -> pl.DataFrame:
    """Return quotes (epoch ms, bid, ask) as a frame of ticks."""
    return pl.DataFrame(
        {
            "symbol": [symbol] * len(rows),
            "ts": [from_ms(row[0]) for row in rows],
            "kind": ["quote"] * len(rows),
            "bid": [row[1] for row in rows],
            "ask": [row[2] for row in rows],
            "price": None,
            "size": None,
            "exchange": None,
            "conditions": None,
            "received_at": [from_ms(row[0] + 20) for row in rows],
        },
        schema=TICK_SCHEMA,
    )


def expected(rows: Sequence[Row], code: str) -> list[tuple[Any, ...]]:
    """Return the bars of quotes as history makes them."""
    return bars_from_quotes(quotes(rows).select("ts", "bid", "ask"), code).select(COLUMNS).rows()


@dataclass
class Bench:
    """A NATS with streams, batches into TICKS and bars out of LIVE; batches of ticks stay in TICKS."""

    bus: BusSession
    sent: list[int] = field(default_factory=list)  # sequences

    async def send(
        self,
        rows: Sequence[Row] = (),
        *,
        alive: int,
        symbol: str = "EURUSD",
        epoch: int = 1,
        session: str = "s",
        started: int = T0 - MINUTE,
        lost_from: int | None = None,
        batch_id: int | None = None,
        number: int = 0,
        **headers: str,
    ) -> int:
        """Publish a batch, or without rows a heartbeat, and return its sequence. `alive`: up to where it proves."""
        at = from_ms(alive) + LATE
        batch = encode_tick_batch(
            quotes(rows, symbol),
            TickHeaders(
                batch_id=batch_id or new_batch_id(),
                correlation_id="test",
                symbol=symbol,
                collector_id="test",
                epoch=epoch,
                rows=0,
                session_id=session,
                session_started=from_ms(started),
                alive_at=at,
                lost_from=None if lost_from is None else from_ms(lost_from),
                number=number,
                stages={"received": now_ms()},
            ),
        )
        ack = await Publisher(self.bus.nc, self.bus.js).publish_message(
            market_subject(symbol, "tick"), batch.payload, {**batch.headers.to_nats(), **headers}
        )
        self.sent.append(ack.seq)
        return ack.seq

    async def batches(self) -> list[tuple[BatchHeaders, pl.DataFrame]]:
        """Return what LIVE holds, in its order."""
        found = []
        state = (await self.bus.js.stream_info(LIVE)).state
        for seq in range(max(1, state.first_seq), state.last_seq + 1):
            message = await self.bus.js.get_msg(LIVE, seq=seq)
            headers = BatchHeaders.from_nats(message.headers)
            found.append((headers, decode(message.data or b"", headers)))
        return found

    async def bars(self, code: str = "1m", symbol: str = "EURUSD") -> list[pl.DataFrame]:
        """Return the bars of a series as they were published, one row each."""
        return [
            row
            for headers, frame in await self.batches()
            if (headers.symbol, headers.timeframe) == (symbol, code)
            for row in frame.select(list(BAR_SCHEMA)).iter_slices(1)
        ]

    async def last(self, code: str = "1m", symbol: str = "EURUSD") -> pl.DataFrame:
        """Return the last word on each bar, sorted, as a store would keep it: of the highest revision."""
        rows = await self.bars(code, symbol)
        frame = pl.concat(rows) if rows else pl.DataFrame(schema=BAR_SCHEMA)
        return frame.sort("ts", "revision", maintain_order=True).unique("ts", keep="last", maintain_order=True)

    async def until(self, ready: Callable[[pl.DataFrame], bool], code: str = "1m", symbol: str = "EURUSD") -> Any:
        """Wait until the last word on a series is as asked."""
        deadline = time.monotonic() + 15
        while not ready(frame := await self.last(code, symbol)):
            assert time.monotonic() < deadline, frame
            await asyncio.sleep(0.03)
        return frame

    @asynccontextmanager
    async def running(
        self, *instruments: Instrument, settled: bool = True, **options: Any
    ) -> AsyncIterator[Aggregator]:
        """Run an aggregator; by default wait until it is where its checkpoint was."""
        one = Aggregator(self.bus, instruments or (EUR,), lease_ttl_s=2.0, **options)
        stop = asyncio.Event()
        task = asyncio.create_task(one.run(stop))
        try:
            if settled:
                await eventually(lambda: one.health().state == "running" or task.done())
            yield one
        finally:
            stop.set()
            await asyncio.wait_for(task, 15)


async def eventually(ready: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "it did not come to be"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def open_bench(server: NatsProcess) -> AsyncIterator[Bench]:
    """Connect to a server and give it empty streams."""
    async with open_bus(server.settings, "test") as bus:
        for stream in await bus.js.streams_info():
            await bus.js.delete_stream(stream.config.name or "")
        await bus.ensure_streams(scale=1 / 64)
        yield Bench(bus)


def at(ms: int) -> datetime:
    """Return epoch ms as a UTC datetime."""
    return datetime.fromtimestamp(ms / 1000, UTC)


__all__ = ["BTC", "EUR", "GBP", "MINUTE", "T0", "Bench", "at", "eventually", "expected", "open_bench", "quotes"]

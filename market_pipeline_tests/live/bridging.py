"""What the bridge's tests share: real servers that may die, live flushes and history to publish, what was stored."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from market_pipeline import payload
from market_pipeline.bus.envelope import BatchHeaders, EncodedBatch, now_ms
from market_pipeline.bus.publisher import Publisher
from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.bus.subjects import market_subject
from market_pipeline.errors import MarketPipelineError
from market_pipeline.live.bridge_service import BridgeService
from market_pipeline.local.clickhouse import process
from market_pipeline.local.clickhouse.process import ServerProcess
from market_pipeline.market.digest import value_digest
from market_pipeline.market.timeframes import from_ms, to_ms
from market_pipeline.settings import ClickHouseSettings, LiveSettings, NatsSettings, Settings
from market_pipeline.stores.clickhouse import Client, connect
from market_pipeline_tests.servers import new_database
from market_pipeline_tests.stores.frames import bar

SYMBOLS = ("EURUSD", *(f"SYM{number:02d}" for number in range(1, 20)))
BACKLOG = tuple(f"OLD{number:02d}" for number in range(70))
INSTRUMENTS = "\n".join(
    [
        "instruments:",
        '  - {symbol: EUR/USD, asset_class: forex, vendor_ticker: "C:EURUSD", calendar: forex, '
        "history_start: 2014-01-01}",
        *(
            f"  - {{symbol: {name}, asset_class: stock, vendor_ticker: {name}, calendar: XNYS, "
            "history_start: 2014-01-01}"
            for name in (*SYMBOLS[1:], *BACKLOG)
        ),
    ]
)


class ClickHouse:
    """A ClickHouse on one port and folder that may be killed and started again."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._server: ServerProcess | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, for the second time on the same port."""
        self._server = process.start(self._home, port=self.port)
        self.port = self._server.port

    def kill(self) -> None:
        """End it by SIGKILL."""
        assert self._server is not None
        self._server.kill()

    def stop(self) -> None:
        """End it cleanly."""
        assert self._server is not None
        self._server.stop()

    def settings(self) -> ClickHouseSettings:
        """Reach it, with a database that does not exist yet."""
        assert self._server is not None
        return new_database(self._server)


def settings_of(home: Path, nats: NatsSettings, clickhouse: ClickHouseSettings, **live: Any) -> Settings:
    """Return the settings of a test."""
    soon = nats.model_copy(update={"connect_timeout": 1.0})
    file = home / "instruments.yaml"
    file.write_text(INSTRUMENTS)
    return Settings(home=home, instruments_file=file, nats=soon, clickhouse=clickhouse, live=LiveSettings(**live))


def live_batch(frame: pl.DataFrame, batch_id: int, *, received_ms: int | None = None, run_id: str = "") -> EncodedBatch:
    """Return rows of one series as a batch of a live flush: the id is the flush's."""
    rows = frame.with_columns(pl.lit(batch_id, pl.UInt64).alias("batch_id"))
    first = rows.row(0, named=True)
    headers = BatchHeaders(
        batch_id=batch_id,
        correlation_id=f"flush-{batch_id}",
        source=first["source"],
        symbol=first["symbol"],
        timeframe=first["timeframe"],
        rows=rows.height,
        digest=value_digest(rows),
        start_ts=rows["ts"][0],
        end_ts=rows["ts"][-1],
        run_id=run_id,
        stages={"received": received_ms or now_ms(), "decoded": now_ms(), "encoded": now_ms()},
    )
    return EncodedBatch(headers, payload.encode(rows), rows)


def flush(
    at_ms: int, symbols: Sequence[str] = SYMBOLS, codes: Sequence[str] = ("1s",), **columns: Any
) -> list[EncodedBatch]:
    """Return the bars that close at one moment, one a symbol and timeframe, under one batch id."""
    batch_id = secrets.randbelow(2**62) + 1
    lengths = {"1s": 1000, "1m": 60_000}
    return [
        live_batch(
            bar(
                from_ms(at_ms - lengths[code]),
                **{"symbol": symbol, "timeframe": code, "source": "live_aggregated", **columns},
            ),
            batch_id,
        )
        for code in codes
        for symbol in symbols
    ]


@dataclass
class Desk:
    """Publish to the streams and read the store beside the bridge under test."""

    settings: Settings
    bus: BusSession
    client: Client
    published: list[EncodedBatch] = field(default_factory=list)

    async def publish(self, batches: Sequence[EncodedBatch], subject: str = "") -> None:
        """Publish batches at once, to their live subjects unless told otherwise."""
        publisher = Publisher(self.bus.nc, self.bus.js)
        await asyncio.gather(
            *(
                publisher.publish(each, subject or market_subject(each.headers.symbol, each.headers.timeframe))
                for each in batches
            )
        )
        self.published += batches

    async def query(self, sql: str) -> pl.DataFrame:
        """Ask the store; an empty frame while it cannot answer."""
        try:
            return await asyncio.to_thread(self.client.frame, sql)
        except MarketPipelineError:
            return pl.DataFrame()

    async def number(self, sql: str) -> int:
        """Ask the store for one number; -1 while it cannot answer."""
        frame = await self.query(sql)
        return int(frame.item()) if frame.height else -1

    async def until(self, sql: str, number: int, seconds: float = 30.0) -> None:
        """Wait until the store answers with a number."""
        await eventually_async(lambda: self.number(sql), lambda found: found == number, seconds, sql)

    async def drained(self, stream: str, seconds: float = 30.0) -> None:
        """Wait until a stream is empty: everything in it was acknowledged."""

        async def left() -> int:
            return int((await self.bus.js.stream_info(stream)).state.messages)

        await eventually_async(left, lambda found: found == 0, seconds, f"{stream} is not empty")

    async def letters(self) -> int:
        """Return the number of dead letters."""
        return int((await self.bus.js.stream_info("DEAD_LETTERS")).state.messages)


@asynccontextmanager
async def open_desk(settings: Settings) -> AsyncIterator[Desk]:
    """Connect to NATS, with empty streams, and to ClickHouse, which must be there."""
    client = await asyncio.to_thread(connect, settings.clickhouse)
    try:
        async with open_bus(settings.nats, "desk") as bus:
            for stream in await bus.js.streams_info():
                await bus.js.delete_stream(stream.config.name or "")
            await bus.ensure_streams()
            yield Desk(settings, bus, client)
    finally:
        client.close()


@asynccontextmanager
async def bridge(settings: Settings, *, running: bool = True) -> AsyncIterator[BridgeService]:
    """Run a bridge; by default wait until it says that it runs."""
    service, stop = BridgeService(settings), asyncio.Event()
    task = asyncio.create_task(service.run(stop))
    try:
        if running:
            await eventually(lambda: service.health().state == "running" or task.done())
        yield service
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


async def eventually(ready: Callable[[], bool], seconds: float = 30.0, what: object = "") -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, what or "it did not come to be"
        await asyncio.sleep(0.02)


async def eventually_async(ask: Any, ready: Callable[[Any], bool], seconds: float, what: object) -> Any:
    """Wait until an answer is as wanted."""
    until, found = time.monotonic() + seconds, None
    while True:
        with suppress(MarketPipelineError, OSError, TimeoutError):
            found = await ask()
            if ready(found):
                return found
        assert time.monotonic() < until, (what, found)
        await asyncio.sleep(0.03)


def minute_before(now: int) -> int:
    """Return the last full minute before epoch ms."""
    return now - now % 60_000


__all__ = [
    "SYMBOLS",
    "ClickHouse",
    "Desk",
    "bridge",
    "eventually",
    "flush",
    "live_batch",
    "minute_before",
    "open_desk",
    "settings_of",
    "to_ms",
]

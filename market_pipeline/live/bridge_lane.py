"""One stream's road into ClickHouse as a part of the bridge service: with connections of its own, opened ever again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields

import structlog

from market_pipeline.breaker import Breaker, Breakers
from market_pipeline.bus.consumer import BatchConsumer, Lag
from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.errors import BusError, MarketPipelineError, Transient
from market_pipeline.instruments_file import load_instruments
from market_pipeline.live.service import Fact
from market_pipeline.live.worker import BridgeStats, StreamWorker, insert_breaker
from market_pipeline.settings import Settings
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.clickhouse import connect as connect_store
from market_pipeline.stores.clickhouse import probe as probe_store
from market_pipeline.stores.migrations import apply
from market_pipeline.tasks import end_tasks, pause

log = structlog.get_logger(__name__)

LOOK_S = 1.0
FINISH_S = 20.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0
SAY_AGAIN_S = 30.0
_GAUGES = ("settled_at", "away")


@dataclass(frozen=True)
class LaneParts:
    """Hold what a lane's worker is made of. symbols: the keys that are stored."""

    consumer: BatchConsumer
    client: Client
    bus: BusSession
    threads: Executor
    stats: BridgeStats
    breaker: Breaker
    symbols: frozenset[str]


MakeWorker = Callable[[LaneParts], StreamWorker]


@dataclass(frozen=True)
class LaneSpec:
    """Say what a lane consumes: its stream, the threads that it needs, and how its worker is made."""

    stream: str
    threads: int
    make: MakeWorker


class Waiting:
    """Judge whether input waits without output: messages are there, none was settled, and the oldest stays the oldest.

    Other processes share the consumer, so the oldest message going on is progress as well, whoever made it.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._oldest_at = 0.0

    def look(self, lag: Lag, now: float) -> None:
        """Note what the server says at `now` (`time.monotonic`)."""
        if not (lag.num_pending or lag.num_ack_pending):
            self._since = None
            return
        oldest_at = now - lag.oldest_age_s
        if self._since is None or oldest_at > self._oldest_at + 0.5:  # ages are asked and told at different times
            self._since, self._oldest_at = now, oldest_at

    def stuck_s(self, settled_at: float | None, now: float) -> float:
        """Return for how long input has waited without output, in seconds."""
        if self._since is None:
            return 0.0
        return max(0.0, now - max(self._since, settled_at or 0.0))


class Lane:
    """Run the worker of one stream; wait for whatever is away and open everything anew where that is needed."""

    def __init__(self, spec: LaneSpec, settings: Settings, name: str, schema: asyncio.Lock, breakers: Breakers) -> None:
        """Prepare; `schema` lets one lane of the process at a time apply migrations and create streams.

        Each lane has a breaker of its own: what ClickHouse refuses of a backfill must not hold up a live bar.
        """
        self._breaker = insert_breaker(breakers, f"insert_{spec.stream.lower()}")
        self.spec, self._settings, self._name, self._schema = spec, settings, name, schema
        self.stats = BridgeStats()
        self.open = False
        self.failed = ""
        self.reopened = 0
        self.lag: Lag | None = None
        self._waiting = Waiting()
        self._away: tuple[float, str] | None = None  # since when, and why

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set.

        Raises:
            MarketPipelineError: terminal; only a person can mend it.
        """
        pause_s, said_at = FIRST_PAUSE_S, 0.0
        while not stop.is_set():
            try:
                async with self._opened() as (worker, consumer):
                    self.open, self._away, pause_s = True, None, FIRST_PAUSE_S
                    log.info("bridge_lane_open", stream=self.spec.stream)
                    await self._work(worker, consumer, stop)
            except MarketPipelineError as error:
                if not isinstance(error, Transient):
                    self.failed = str(error)
                    raise
                why = str(error)
            except Exception as error:  # a fault of ours: what is not acknowledged comes again
                log.exception("bridge_lane_broke", stream=self.spec.stream)
                why = f"{type(error).__name__}: {error}"
            else:
                continue
            finally:
                self.open = False
            if self._away is None:
                self._away, said_at = (time.monotonic(), why), 0.0
            self._away = (self._away[0], why)
            if time.monotonic() - said_at > SAY_AGAIN_S:
                said_at = time.monotonic()
                log.warning("bridge_lane_waits", stream=self.spec.stream, error=why)
            self.reopened += 1
            await pause(stop, pause_s * random.uniform(0.5, 1.0))
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    @property
    def waits_for(self) -> str:
        """What is away now, in words; empty when nothing is."""
        return self._away[1] if self._away is not None else self.stats.away

    def problems(self, unhealthy_after_s: float) -> list[str]:
        """Say what is wrong, in words a person can act on."""
        stream, now = self.spec.stream, time.monotonic()
        if self.failed:
            return [f"{stream}: {self.failed}"]
        found = []
        stuck_s = self._waiting.stuck_s(self.stats.settled_at, now)
        if stuck_s > unhealthy_after_s and self.lag is not None:
            found.append(
                f"{stream}: {self.lag.num_pending + self.lag.num_ack_pending} batches wait and none was stored for "
                f"{stuck_s:.0f} s" + (f": {self.stats.away}" if self.stats.away else "")
            )
        if self._away is not None and now - self._away[0] > unhealthy_after_s:
            found.append(f"{stream}: waiting for {now - self._away[0]:.0f} s: {self._away[1]}")
        return found

    def facts(self) -> dict[str, Fact]:
        """Return counters and gauges, each named `{stream}_…`."""
        lag = self.lag or Lag(0, 0, 0.0)
        counters = {
            each.name: getattr(self.stats, each.name) for each in fields(self.stats) if each.name not in _GAUGES
        }
        gauges: dict[str, Fact] = {
            "pending": lag.num_pending,
            "unacknowledged": lag.num_ack_pending,
            "oldest_s": round(lag.oldest_age_s, 3),
            "stuck_s": round(self._waiting.stuck_s(self.stats.settled_at, time.monotonic()), 3),
            "reopened": self.reopened,
        }
        return {f"{self.spec.stream.lower()}_{name}": value for name, value in (gauges | counters).items()}

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[StreamWorker, BatchConsumer]]:
        """Open ClickHouse, then NATS, each proven to work, and make the worker."""
        async with AsyncExitStack() as stack:
            client = await asyncio.to_thread(connect_store, self._settings.clickhouse)
            stack.callback(client.close)
            bus = await stack.enter_async_context(open_bus(self._settings.nats, f"{self._name} {self.spec.stream}"))
            async with self._schema:
                await asyncio.to_thread(probe_store, client)
                await asyncio.to_thread(apply, client)
                await bus.probe()
                await bus.ensure_streams()
            threads = ThreadPoolExecutor(self.spec.threads, thread_name_prefix=f"bridge-{self.spec.stream.lower()}")
            stack.callback(threads.shutdown, wait=False, cancel_futures=True)
            consumer = await stack.enter_async_context(bus.consumer(self.spec.stream))
            symbols = frozenset(load_instruments(self._settings).keys)
            parts = LaneParts(consumer, client, bus, threads, self.stats, self._breaker, symbols)
            yield self.spec.make(parts), consumer

    async def _work(self, worker: StreamWorker, consumer: BatchConsumer, stop: asyncio.Event) -> None:
        """Run the worker until `stop`, then give it `FINISH_S` for what it holds."""
        work = asyncio.create_task(worker.run(stop), name=f"bridge {self.spec.stream}")
        stopped = asyncio.create_task(stop.wait())
        ended = asyncio.Event()
        watch = asyncio.create_task(self._watch(consumer, ended))
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work}, timeout=FINISH_S)
            if not work.done():
                log.warning("bridge_cannot_finish", stream=self.spec.stream)
            else:
                work.result()
        finally:
            ended.set()
            await end_tasks((work, stopped, watch))

    async def _watch(self, consumer: BatchConsumer, ended: asyncio.Event) -> None:
        """Ask the server every second how far the stream is behind."""
        while not ended.is_set():
            try:
                self.lag = await consumer.pending()
                self._waiting.look(self.lag, time.monotonic())
                if self._away is not None:
                    self._away = None
                if not (self.lag.num_pending or self.lag.num_ack_pending):
                    self.stats.away = ""
            except BusError as error:
                if self._away is None:
                    self._away = (time.monotonic(), str(error))
            await pause(ended, LOOK_S)

"""The loop of every bridge: groups of deliveries of one stream into a store, and back while the store is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

import polars as pl
import structlog

from market_pipeline.breaker import Breaker, Breakers
from market_pipeline.bus.consumer import BatchConsumer, Delivery
from market_pipeline.bus.dead_letters import Reason
from market_pipeline.bus.session import BusSession
from market_pipeline.errors import BreakerOpen, BusError, StoreError, Transient
from market_pipeline.live.burial import NOT_TAKEN, give_back_unburied
from market_pipeline.stores.ingest_ledger import IngestLedger
from market_pipeline.tasks import end_tasks, pause

log = structlog.get_logger(__name__)

PROBE_S = 1.0
"""While its breaker is open a worker asks the store so often whether it does its work again."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class BridgeStats:
    """Count what passed: batches, rows and groups, and what could not be stored.

    settled_at: `time.monotonic` of the last batch that was stored or dead-lettered; None before the first.
    away: why the store took the last group not; empty when it did.
    """

    batches: int = 0
    rows: int = 0
    inserts: int = 0
    new: int = 0
    restated: int = 0
    withdrawn: int = 0
    unchanged: int = 0
    superseded: int = 0
    rejected_rows: int = 0
    dead_letters: int = 0
    given_back: int = 0
    outages: int = 0
    settled_at: float | None = None
    away: str = ""

    def settled(self) -> None:
        """Note that the store has taken something, or that it is safe in dead letters."""
        self.settled_at, self.away = time.monotonic(), ""


def insert_breaker(breakers: Breakers | None = None, name: str = "insert") -> Breaker:
    """Return the breaker of the edge to the store; what NATS does wrong says nothing about the store."""
    return (breakers or Breakers()).of(name, of=(StoreError,))


class StreamWorker:
    """Consume one stream until told to stop; a subclass says how a group is stored, and has these attributes.

    quiet_s: a group is taken as whole when nothing has come for so long; None: only after `gather_s`.
    executor: where blocking calls run; None: the event loop's threads, which everything else of the process shares.
    breaker: of the store. While it is open nothing is fetched: the messages stay in the stream, for whoever can store
        them. A probe of the store closes it, so that live bars don't wait for a trial.
    """

    consumer: BatchConsumer
    ledger: IngestLedger
    breaker: Breaker
    bus: BusSession
    max_group_rows: int
    max_group_batches: int
    groups_in_flight: int
    gather_s: float
    quiet_s: float | None = None
    executor: Executor | None
    stats: BridgeStats

    async def run(self, stop: asyncio.Event) -> None:
        """Move batches until `stop` is set and the groups in flight are done.

        Raises:
            BusUnreachable: the connection is closed for good.
            StreamMissing: the stream was deleted.
        """
        slots = asyncio.Semaphore(self.groups_in_flight)
        running: set[asyncio.Task[None]] = set()
        try:
            while not stop.is_set():
                await slots.acquire()
                if not await self._store_answers(stop):
                    break
                try:
                    group = await self._collect(stop)
                except BusError as error:  # the broker is away: what it holds stays there
                    if self.bus.nc.is_closed:
                        raise
                    log.warning("bridge_cannot_fetch", error=str(error))
                    group = []
                    await asyncio.sleep(0.5)
                if not group:
                    slots.release()
                    continue
                task = asyncio.create_task(self._handle(group))
                running.add(task)
                task.add_done_callback(running.discard)
                task.add_done_callback(lambda _: slots.release())
            await asyncio.gather(*running)
        finally:
            await end_tasks(running)

    async def _store(self, group: list[Delivery]) -> None:
        """Store a group, and acknowledge or dead-letter each of its deliveries."""
        raise NotImplementedError

    async def _store_answers(self, stop: asyncio.Event) -> bool:
        """Wait while the breaker is not closed; False if told to stop before."""
        while self.breaker.state != "closed":
            self.breaker.try_now()
            try:
                with self.breaker.attempt():
                    await self._thread(self.ledger.probe)
            except (StoreError, BreakerOpen) as error:  # BreakerOpen: a group still in hand is the trial
                if isinstance(error, StoreError):
                    self.stats.away = str(error)
                if await pause(stop, PROBE_S):
                    return False
        return not stop.is_set()

    async def _thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a blocking call in a thread of this worker's own."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, partial(call, *args, **kwargs))

    async def _collect(self, stop: asyncio.Event) -> list[Delivery]:
        """Return deliveries up to a group's size; after the first has come, wait `gather_s` at most for its company.

        An insert costs by its parts, not by its rows: five small groups cost four times as much as one large.
        """
        group = await self.consumer.fetch(self.max_group_batches, 0.5)
        until = time.monotonic() + self.gather_s
        while group and not stop.is_set():
            rows = sum(_rows_said(d) for d in group)
            room = self.max_group_batches - len(group)
            left = until - time.monotonic()
            if room <= 0 or rows >= self.max_group_rows or left <= 0:
                break
            more = await self.consumer.fetch(room, min(left, self.quiet_s or 0.1))
            if not more and self.quiet_s is not None:
                break
            group += more
        return group

    async def _handle(self, group: list[Delivery]) -> None:
        """Store a group; when the store is away, or was just now, give it back."""
        try:
            with self.breaker.attempt():
                async with self.consumer.keep_alive(group):
                    await self._store(group)
        except BreakerOpen:
            self.stats.given_back += len(group)
            await self._give_back(group)
        except StoreError as error:
            if not isinstance(error, Transient):
                log.error("bridge_store_refuses", error=str(error))
            self.stats.outages += 1
            self.stats.given_back += len(group)
            self.stats.away = str(error)
            log.warning("bridge_gives_back", batches=len(group), error=str(error))
            await self._give_back(group)
            await asyncio.sleep(1.0)
        except BusError as error:  # not acknowledged: the broker delivers them again, and they will be unchanged
            log.warning("bridge_cannot_acknowledge", batches=len(group), error=str(error))
        except Exception as error:
            self.stats.away = f"{type(error).__name__}: {error}"
            log.exception("bridge_group_failed", batches=len(group))
            await self._give_back(group)
            await asyncio.sleep(1.0)

    async def _give_back(self, group: list[Delivery]) -> None:
        try:
            await self.consumer.give_back(group, delay_s=1.0)
        except BusError as error:
            log.warning("bridge_cannot_give_back", batches=len(group), error=str(error))

    async def _bury(
        self, delivery: Delivery, reason: str, error: str, *, first_error: str = "", attempts: int | None = None
    ) -> bool:
        """Send a delivery to dead letters; it leaves its stream only after that was acknowledged.

        False where they do not take it: it alone is given back, until a person made room.
        """
        try:
            await self.bus.bury(delivery, reason, error, first_error=first_error, attempts=attempts)
        except NOT_TAKEN as refusal:
            await self._give_back_unburied(delivery, refusal)
            return False
        await self.consumer.term(delivery)
        self.stats.dead_letters += 1
        self.stats.settled()
        log.warning(
            "dead_letter", reason=str(reason), subject=delivery.subject, sequence=delivery.stream_seq, error=error
        )
        return True

    async def _bury_rows(self, delivery: Delivery, bad: pl.DataFrame) -> bool:
        """Send malformed rows (with their `reason`) to dead letters, each alone, as JSON.

        False where they do not take them: the delivery is given back, to be compared once more.
        """
        try:
            for row in bad.iter_slices(1):
                text = row.drop("reason").write_ndjson().encode()
                await self.bus.bury(delivery, Reason.MALFORMED_ROW, str(row["reason"][0]), rows=text)
        except NOT_TAKEN as refusal:
            await self._give_back_unburied(delivery, refusal)
            return False
        return True

    async def _give_back_unburied(self, delivery: Delivery, refusal: BusError) -> None:
        self.stats.given_back += 1
        await give_back_unburied(self.consumer, delivery, refusal)

    def _count(self, outcome: Any, rows: int) -> None:
        """Add what a stored batch came to."""
        self.stats.batches += 1
        self.stats.rows += rows
        for name in ("new", "restated", "withdrawn", "unchanged", "superseded"):
            setattr(self.stats, name, getattr(self.stats, name) + getattr(outcome, name))
        self.stats.rejected_rows += outcome.rejected
        self.stats.settled()


def _rows_said(delivery: Delivery) -> int:
    """Return the rows that the headers promise, for sizing a group only; nothing where they promise nothing."""
    said = delivery.headers.get("Rows", "")
    return int(said) if said.isdecimal() else 0

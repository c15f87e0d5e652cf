"""The tick store, tried as often as it takes: one that is away is told from a batch that it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from market_pipeline.breaker import Breaker
from market_pipeline.errors import StoreQueryError, StoreUnreachable
from market_pipeline.live.tick_bridge.meter import Counts
from market_pipeline.stores.ticks import BatchResult, Outcome, TickBatch, TickLoss, TickStore
from market_pipeline.tasks import pause

log = structlog.get_logger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 5.0
PROBE_S = 1.0
MAX_ATTEMPTS = 10
"""Attempts after which a message that the store refuses, while it takes others, goes to dead letters."""
REFUSED_WAIT_S = 0.2

T = TypeVar("T")


class TermEnded(Exception):
    """Told to end while the store is away."""


class StoreAway(Exception):
    """The breaker of the tick store has opened: what is held is given back."""


class _GivenUp(Exception):
    """The store refuses one thing while it takes others; the message is what it said."""


class PatientStore:
    """Store ticks, as often as it takes. `problem`: why the store does not take them, empty when it does.

    Until `began` is called nothing is held yet: then an open breaker makes the work itself the trial, every second.
    """

    def __init__(self, store: TickStore, breaker: Breaker, counts: Counts, ended: asyncio.Event) -> None:
        """Prepare; `ended` ends the waiting."""
        self.store = store
        self._breaker, self._counts, self._ended = breaker, counts, ended
        self._holds = False
        self.problem = breaker.snapshot().last_error if breaker.state != "closed" else ""

    def began(self) -> None:
        """From now on deliveries are held: where the breaker opens they must be given back."""
        self._holds = True

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work, as often as the store is away; it makes no difference to do it twice.

        While nothing is held, and the breaker is open, the work itself is the trial, every second.

        Raises:
            StoreAway: the breaker has opened while deliveries were held.
        """
        wait_s = FIRST_WAIT_S
        while True:
            if self._breaker.state != "closed":
                if self._holds:
                    raise StoreAway(self.problem)
                self._breaker.try_now()
                wait_s = PROBE_S
            try:
                done = await self._breaker.call(work)
            except StoreUnreachable as error:
                if not self.problem:
                    self._counts.outages += 1
                    log.warning("tick_store_away", error=str(error))
                self.problem = str(error)
                await self._sleep(wait_s)
                wait_s = min(LONGEST_WAIT_S, wait_s * 2)
                continue
            if self.problem:
                log.info("tick_store_back")
                self.problem = ""
            return done

    async def commit(self, batches: Sequence[TickBatch]) -> tuple[list[BatchResult], set[int]]:
        """Store batches in one transaction; where the store refuses that, each alone.

        Returns the results, and the places of batches that were given up: refused again and again while a tick of the
        probe was taken.
        """
        try:
            return await self._commit(batches), set()
        except StoreQueryError as error:
            log.warning("tick_group_refused", batches=len(batches), error=str(error))
        results: list[BatchResult] = []
        given_up: set[int] = set()
        for place, batch in enumerate(batches):
            try:
                results += await self._alone(lambda batch=batch: self._commit([batch]))  # type: ignore[misc]
            except _GivenUp as error:
                given_up.add(place)
                results.append(BatchResult(batch.batch_id, Outcome.REJECTED, str(error)))
        return results, given_up

    async def record(self, losses: Sequence[TickLoss]) -> list[tuple[TickLoss, str]]:
        """Record losses; where the store refuses that, each alone. Return those that were given up, and why."""
        if not losses:
            return []
        try:
            await self._record(losses)
            return []
        except StoreQueryError as error:
            log.warning("tick_losses_refused", losses=len(losses), error=str(error))
        given_up: list[tuple[TickLoss, str]] = []
        for loss in losses:
            try:
                await self._alone(lambda loss=loss: self._record([loss]))  # type: ignore[misc]
            except _GivenUp as error:
                given_up.append((loss, str(error)))
        return given_up

    async def _alone(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do what is of one message; _GivenUp when the store refuses it again and again while it takes the probe."""
        refused = 0
        while True:
            try:
                return await work()
            except StoreQueryError as error:
                said = str(error)
                log.debug("one_refused_by_tick_store", error=said)
            try:
                await self.patiently(self.store.probe)
                refused += 1
                self.problem = ""
            except StoreQueryError as error:
                self.problem = str(error)  # it refuses everything: not the batch's fault
            if refused >= MAX_ATTEMPTS:
                raise _GivenUp(said)
            await self._sleep(REFUSED_WAIT_S if refused else LONGEST_WAIT_S)

    async def _commit(self, batches: Sequence[TickBatch]) -> list[BatchResult]:
        report = await self.patiently(lambda: self.store.store(batches))
        self._counts.transactions += 1
        self._counts.superseded += report.superseded
        return list(report.results)

    async def _record(self, losses: Sequence[TickLoss]) -> None:
        await self.patiently(lambda: self.store.record_losses(losses))

    async def _sleep(self, seconds: float) -> None:
        if await pause(self._ended, seconds):
            raise TermEnded

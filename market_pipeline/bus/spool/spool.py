"""The spool of one publisher: records go in behind each other, several with one fsync, and are counted by subject."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from market_pipeline.bus.spool.disk import read_segment
from market_pipeline.bus.spool.record import SpoolRecord
from market_pipeline.bus.spool.writer import SegmentWriter
from market_pipeline.errors import SpoolError, SpoolFull
from market_pipeline.settings import SpoolSettings

log = structlog.get_logger(__name__)

POLL_S = 0.005

OnGivenUp = Callable[[Sequence[SpoolRecord]], Sequence[SpoolRecord]]
"""Takes the records that are given up, and returns those that tell of it: they are published in their place."""


@dataclass(slots=True)
class SpoolCounters:
    """Count records since the start: kept, drained, given up to make room, refused for want of it, found damaged."""

    spooled: int = 0
    drained: int = 0
    given_up: int = 0
    refused: int = 0
    damaged: int = 0


class Spool:
    """Keep what cannot be published; for the tasks of one event loop.

    With `on_given_up` and the setting `full = "oldest"`, a full spool gives up its own oldest segments, and keeps in
    their place the records that tell of the loss; else it refuses.
    """

    def __init__(self, root: Path, name: str, settings: SpoolSettings, on_given_up: OnGivenUp | None = None) -> None:
        """Prepare; nothing is touched before the first record. `name` is shown to those who look at the folder."""
        self.root = root
        self.counters = SpoolCounters()
        self.arrived = asyncio.Event()
        self.writer = SegmentWriter(root, name, settings)
        self._on_given_up = on_given_up if settings.full == "oldest" else None
        self._pending: Counter[str] = Counter()
        self._queue: list[tuple[SpoolRecord, asyncio.Future[None]]] = []
        self._committing: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._full = False

    @property
    def waiting(self) -> int:
        """Records that are kept, or being written, and not yet drained."""
        return self._pending.total()

    @property
    def full(self) -> bool:
        """Whether the last record found no room."""
        return self._full

    def holds(self, subject: str) -> bool:
        """Whether something of this subject waits, so that what comes now has to go behind it."""
        return self._pending[subject] > 0

    async def wait_free(self, subject: str, seconds: float) -> bool:
        """Wait until nothing of a subject is left; False if something is after so long."""
        until = time.monotonic() + seconds
        while self.holds(subject):
            if time.monotonic() >= until:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def append(self, record: SpoolRecord) -> None:
        """Return once the record is on disk.

        Raises:
            SpoolFull: there is no room; it is not kept.
            SpoolError: the disk fails; it is not kept.
        """
        self._pending[record.subject] += 1
        self._empty.clear()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((record, future))
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit(), name="spool")
        await future

    async def wait_empty(self, seconds: float) -> bool:
        """Wait until everything is drained; False if it is not after so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        return self._empty.is_set()

    def drained(self, record: SpoolRecord) -> None:
        """Count a record that is published."""
        self.counters.drained += 1
        self._forget([record])

    def nothing_left(self) -> None:
        """Forget what is still counted although no segment is left: damaged records are never drained.

        To be told after `arrived` was cleared and no segment was found since.
        """
        writing = bool(self._queue) or (self._committing is not None and not self._committing.done())
        if not writing and not self.arrived.is_set():
            self._pending.clear()
            self._empty.set()

    async def close(self) -> None:
        """Write what is on its way, then give the folder up to whoever adopts it."""
        while self._committing is not None and not self._committing.done():
            await asyncio.wait({self._committing})
        await asyncio.to_thread(self.writer.close)

    async def _commit(self) -> None:
        while self._queue:
            # A burst waits for one fsync, not for one each; a group fits a segment, so that segments keep their size.
            group, size = [], 0
            while self._queue and size < self.writer.segment_bytes:
                group.append(self._queue.pop(0))
                size += len(group[-1][0].payload)
            records = [record for record, _ in group]
            try:
                await self._write(records)
            except Exception as error:  # whatever it is: somebody waits for each of them
                self._refuse(records, error)
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
                continue
            self.counters.spooled += len(records)
            if self._full:
                self._full = False
                log.info("spool_has_room_again", folder=str(self.root))
            self.arrived.set()
            for _, future in group:
                if not future.done():
                    future.set_result(None)

    async def _write(self, records: Sequence[SpoolRecord]) -> None:
        while True:
            try:
                await asyncio.to_thread(self.writer.write, records)
                return
            except SpoolFull:
                if self._on_given_up is None:
                    raise
                oldest = await asyncio.to_thread(self.writer.next_to_give_up)
                if oldest is None:
                    raise  # others fill it
                _, segment = oldest
                try:
                    await self._give_up(segment, self._on_given_up)
                except Exception:
                    await asyncio.to_thread(self.writer.put_back, segment)
                    self.arrived.set()
                    raise

    async def _give_up(self, segment: Path, on_given_up: OnGivenUp) -> None:
        lost = (await asyncio.to_thread(read_segment, segment)).records
        told = on_given_up(lost)
        self._pending.update(record.subject for record in told)
        try:
            await asyncio.to_thread(self.writer.replace, segment, told)
        except SpoolError:
            self._forget(told)
            raise
        self.counters.given_up += len(lost)
        self._forget(lost)
        log.error("spool_gave_up_oldest", folder=str(self.root), records=len(lost))

    def _refuse(self, records: Sequence[SpoolRecord], error: Exception) -> None:
        self.counters.refused += len(records)
        self._forget(records)
        if not self._full:  # once, not with each attempt
            known = isinstance(error, SpoolError)
            log.error("spool_refuses", error=str(error), exc_info=None if known else error)
        self._full = True

    def _forget(self, records: Sequence[SpoolRecord]) -> None:
        for record in records:
            self._pending[record.subject] -= 1
            if self._pending[record.subject] <= 0:
                del self._pending[record.subject]
        if not self._pending:
            self._empty.set()

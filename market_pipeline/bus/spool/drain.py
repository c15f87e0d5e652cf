"""Draining: what lies in the spool goes out in its order, and leaves the disk only once JetStream has it."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from market_pipeline.bus.spool.disk import read_segment, translated
from market_pipeline.bus.spool.folder import SpoolFolder, adoptable, segments_of
from market_pipeline.bus.spool.record import SALT_BYTES, SpoolRecord, encode_record, segment_head
from market_pipeline.bus.spool.spool import Spool
from market_pipeline.errors import BreakerOpen, BusError, SpoolError, StreamFull, Terminal

log = structlog.get_logger(__name__)

WINDOW = 64
POLL_S = 0.1
AGAIN_S = 0.5
ADOPT_EVERY_S = 10.0

Send = Callable[[str, bytes, Mapping[str, str]], Awaitable[object]]


@dataclass(slots=True)
class DrainCounters:
    """Count since the start: records published, those that NATS refuses for good, folders of others adopted."""

    drained: int = 0
    refused: int = 0
    adopted: int = 0


class Drain:
    """Publish a spool's records, and those of folders whose owner is gone.

    A subject has one record on its way at a time, so that its order is kept through every failure; up to 64 subjects
    go at once. At the first failure it stops, and goes on with that record later.
    """

    def __init__(self, spool: Spool, send: Send, connected: Callable[[], bool], came_back: Callable[[], None]) -> None:
        """Prepare.

        Args:
            send: publishes (subject, payload, headers) and returns once it is kept.
            connected: whether trying makes sense now.
            came_back: told when `connected` turns true.
        """
        self._spool, self._send = spool, send
        self._connected, self._came_back = connected, came_back
        self._left: dict[Path, deque[SpoolRecord]] = {}
        self._adopted = _Adopted()
        self._said = False
        self.counters = DrainCounters()

    async def run(self) -> None:
        """Drain until cancelled; folders that were adopted are then given up again."""
        away, adopt_at = True, 0.0
        self._adopted = _Adopted()
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._connected():
                    away = True
                    await asyncio.sleep(POLL_S)
                    continue
                if away:
                    away = False
                    self._came_back()
                if loop.time() >= adopt_at:
                    await self._adopt()
                    adopt_at = loop.time() + ADOPT_EVERY_S
                if not await self._pass():
                    await asyncio.sleep(AGAIN_S)
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, adopt_at - loop.time())):
                        await self._spool.arrived.wait()
        finally:
            self._adopted.end()

    async def _adopt(self) -> None:
        try:
            self.counters.adopted += await asyncio.to_thread(self._adopted.look, self._spool.root)
        except SpoolError as error:
            self._say(error)  # what others left is looked for again later; the own records may be readable

    async def _pass(self) -> bool:
        """Drain everything once; False when something is left. Others' records come first: they are older."""
        whole = True
        try:
            for folder in self._adopted.folders:
                try:
                    for segment in await asyncio.to_thread(segments_of, folder.path):
                        await self._drain(folder, segment, own=False)
                except (StreamFull, SpoolError) as error:
                    whole = self._say(error)  # its stream is full, or its file unreadable: another's may not be
                    continue
                await asyncio.to_thread(folder.release)
                self._adopted.forget(folder)
                log.info("spool_folder_drained", folder=str(folder.path))
            while True:
                self._spool.arrived.clear()
                following = await asyncio.to_thread(self._spool.writer.next_to_drain)
                if following is None:
                    self._spool.nothing_left()
                    break
                await self._drain(*following, own=True)
        except (BusError, BreakerOpen) as error:
            return self._say(error)
        if self._said and whole:
            self._said = False
            log.info("spool_drained", root=str(self._spool.root), records=self.counters.drained)
        return whole

    def _say(self, error: Exception) -> bool:
        if not self._said:
            log.warning("spool_waits", root=str(self._spool.root), error=str(error))
        self._said = True
        return False

    async def _drain(self, folder: SpoolFolder, segment: Path, *, own: bool) -> None:
        """Publish what is left of a segment, then remove it."""
        left = self._left.get(segment)
        if left is None:
            left = self._left[segment] = deque(await asyncio.to_thread(self._load, folder, segment))
        while left:
            wave = _next_wave(left)
            outcomes = await asyncio.gather(
                *(self._publish(folder, segment, record) for record in wave), return_exceptions=True
            )
            failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            for record, outcome in reversed(list(zip(wave, outcomes, strict=True))):
                if isinstance(outcome, BaseException):
                    left.appendleft(record)
                elif own:
                    self._spool.drained(record)
            self.counters.drained += len(wave) - len(failures)
            if failures:
                raise failures[0]
        await asyncio.to_thread(folder.remove, segment)
        del self._left[segment]  # only now: what could not be removed is not to be published again

    async def _publish(self, folder: SpoolFolder, segment: Path, record: SpoolRecord) -> None:
        try:
            await self._send(record.subject, record.payload, {**record.headers, "Nats-Msg-Id": record.msg_id})
        except BusError as error:
            if not isinstance(error, Terminal):
                raise
            # It will never be taken, and must not hold up what waits behind it.
            salt = secrets.token_bytes(SALT_BYTES)
            data = segment_head(salt) + encode_record(record, salt)
            aside = await asyncio.to_thread(folder.set_aside, f"{segment.stem}.{record.msg_id[:64]}.refused", data)
            self.counters.refused += 1
            log.error("spooled_record_refused", subject=record.subject, aside=str(aside), error=str(error))

    def _load(self, folder: SpoolFolder, segment: Path) -> tuple[SpoolRecord, ...]:
        found = read_segment(segment)
        if found.torn_at is not None:
            log.warning("spool_torn_record_cut", segment=str(segment), at=found.torn_at, records=len(found.records))
        if found.damaged:
            with translated(segment):
                data = segment.read_bytes()
            for region in found.damaged:
                aside = folder.set_aside(f"{segment.stem}.{region.start}.damaged", data[region.start : region.end])
                log.error(
                    "spool_damage_set_aside",
                    segment=str(segment),
                    at=region.start,
                    bytes=region.end - region.start,
                    aside=str(aside),
                    records_saved=len(found.records),
                )
            self._spool.counters.damaged += len(found.damaged)
        return found.records


class _Adopted:
    """The folders of others whose locks a drain holds.

    A thread that looks for them goes on when the drain that waits for it is ended: what it finds then nobody would
    drain, and nobody else could.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: list[SpoolFolder] = []
        self._ended = False

    @property
    def folders(self) -> list[SpoolFolder]:
        with self._lock:
            return list(self._folders)

    def look(self, root: Path) -> int:
        """Adopt what is free; return how many folders that were."""
        found = 0
        for folder in adoptable(root):
            with self._lock:
                if self._ended:
                    folder.release()
                    break
                self._folders.append(folder)
            found += 1
            log.info("spool_folder_adopted", folder=str(folder.path))
        return found

    def forget(self, folder: SpoolFolder) -> None:
        with self._lock:
            self._folders.remove(folder)

    def end(self) -> None:
        """Give all of them up, and whatever is found from now on."""
        with self._lock:
            self._ended = True
            while self._folders:
                self._folders.pop().release()


def _next_wave(left: deque[SpoolRecord]) -> list[SpoolRecord]:
    """Take records off the front as long as no subject comes a second time."""
    subjects: set[str] = set()
    wave: list[SpoolRecord] = []
    while left and len(wave) < WINDOW and left[0].subject not in subjects:
        subjects.add(left[0].subject)
        wave.append(left.popleft())
    return wave

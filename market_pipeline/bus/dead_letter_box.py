"""The box of dead letters as a person works with it: unread or read, replayed, dropped."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import polars as pl
import structlog
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError
from nats.js.kv import KeyValue

from market_pipeline.bus.dead_letters import (
    DeadLetter,
    Reason,
    Selection,
    drop_dead_letter,
    read_dead_letter,
    walk_dead_letters,
)
from market_pipeline.bus.envelope import encode_batches
from market_pipeline.bus.kv import KV_ERRORS, open_bucket
from market_pipeline.bus.publisher import Publisher
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import DEAD_LETTERS, TICKS, bus_error
from market_pipeline.bus.tick_envelope import REPLAYED
from market_pipeline.errors import BusUnreachable, InputError, PayloadTooLarge
from market_pipeline.market.bars import BAR_SCHEMA, split_valid

log = structlog.get_logger(__name__)

BUCKET, READ_KEY = "dead_letters", "read"
WRITE_ATTEMPTS = 20
MOST_REFUSALS = 100
AT_ONCE = 32


class NotReplayable(InputError):
    """A dead letter that cannot be sent again as it is; the message says what to do instead."""


class _Read(msgspec.Struct):
    """The letters that were read, as ranges of their places, both ends inclusive, in a stream of this birth."""

    stream_created: str
    ranges: list[tuple[int, int]]


@dataclass
class Replayed:
    """What a replay did: letters sent again, and those that cannot be (letter's place, why), the first of them."""

    replayed: int = 0
    refused: int = 0
    refusals: list[tuple[int, str]] = field(default_factory=list)

    def refuse(self, seq: int, why: str) -> None:
        """Count a letter that stays."""
        self.refused += 1
        if len(self.refusals) < MOST_REFUSALS:
            self.refusals.append((seq, why))


@dataclass(frozen=True, slots=True)
class Unread:
    """The unread letters: how many by (stream, reason), and the newest of each, without its payload."""

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    newest: dict[tuple[str, str], DeadLetter] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(self.counts.values())


class DeadLetterBox:
    """Read, mark, replay and drop dead letters.

    A letter is unread from when it comes until a person acknowledged, replayed or dropped it. Acknowledged letters
    stay where they are, to be replayed once their cause is mended.
    """

    def __init__(self, bus: BusSession) -> None:
        self._bus = bus
        self._publisher: Publisher = bus.publisher()
        self._bucket: KeyValue | None = None

    async def get(self, seq: int) -> DeadLetter:
        """Return one letter; raises InputError where there is none, BusUnreachable."""
        return await read_dead_letter(self._bus.js, seq)

    async def unread(self) -> Unread:
        """Count the letters that nobody has read; none where the streams were never created.

        Raises:
            BusUnreachable: JetStream does not answer.
        """
        try:
            await self._bus.js.stream_info(DEAD_LETTERS)
        except NotFoundError:
            return Unread()
        except KV_ERRORS as error:
            raise bus_error(error, DEAD_LETTERS) from error
        read = await self.read_places()
        counts: Counter[tuple[str, str]] = Counter()
        newest: dict[tuple[str, str], DeadLetter] = {}
        async for letter in walk_dead_letters(self._bus.js, headers_only=True):
            if within(read, letter.seq):
                continue
            counts[letter.stream, letter.reason.value] += 1
            newest[letter.stream, letter.reason.value] = letter
        return Unread(dict(counts), newest)

    async def acknowledge(self, letters: Iterable[int]) -> None:
        """Mark letters as read; they stay.

        Raises:
            BusUnreachable: not marked.
        """
        wanted = sorted(set(letters))
        if not wanted:
            return
        try:
            info = await self._bus.js.stream_info(DEAD_LETTERS)
            created, first = str(info.created), info.state.first_seq
            bucket = await self._open()
            for _ in range(WRITE_ATTEMPTS):
                kept, revision = await self._read(bucket)
                ranges = kept.ranges if kept.stream_created == created else []
                merged = merge_ranges([*ranges, *((seq, seq) for seq in wanted)], first)
                try:
                    await bucket.update(READ_KEY, msgspec.json.encode(_Read(created, merged)), last=revision)
                    return
                except KeyWrongLastSequenceError:
                    continue  # another person reads too
        except KV_ERRORS as error:
            raise bus_error(error, f"bucket {BUCKET}") from error
        raise BusUnreachable("others mark dead letters as read all the time: try again")

    async def read_places(self) -> list[tuple[int, int]]:
        """Return the places of the letters that were acknowledged, as sorted ranges, both ends inclusive.

        Raises:
            BusUnreachable: JetStream does not answer.
        """
        try:
            info = await self._bus.js.stream_info(DEAD_LETTERS)
            kept, _ = await self._read(await self._open())
        except KV_ERRORS as error:
            raise bus_error(error, f"bucket {BUCKET}") from error
        # In a stream that was deleted and created anew the places begin again: the marks are not of these letters.
        return kept.ranges if kept.stream_created == str(info.created) else []

    async def drop(self, seq: int) -> bool:
        """Remove a letter for good; False if it is gone already."""
        return await drop_dead_letter(self._bus.js, seq)

    async def replay(self, letter: DeadLetter) -> None:
        """Send a letter's message again to where it came from, and remove the letter once the stream has it.

        In this order a crash in between leaves both: the next replay sends the message once more, which the store's
        key absorbs. Its payload and headers are the original ones; its Nats-Msg-Id is new, so that the stream does not
        take it for the one that failed. A row that was refused alone goes as a batch of its own, if it is valid now.
        Ticks say that they are replayed: else their store would pass over those of a collector that is gone.

        Raises:
            NotReplayable: the letter stays.
            StreamFull, BusUnreachable: the letter stays.
        """
        try:
            await self._send(letter)
        except PayloadTooLarge as error:
            raise NotReplayable(f"with what a replay adds it is too large ({error}), then try again") from error
        await self.drop(letter.seq)
        said = {"reason": letter.reason.value, "subject": letter.subject, "correlation_id": letter.correlation_id}
        log.info("dead letter replayed", seq=letter.seq, **said)

    async def _send(self, letter: DeadLetter) -> None:
        if letter.reason is Reason.VENDOR_MALFORMED_ROW:
            raise NotReplayable(
                "a vendor's row that is no bar cannot be sent again: ask the vendor again (repair_gaps, or load the "
                "day once more), then drop this letter"
            )
        if not (letter.stream and letter.subject):
            raise NotReplayable("it does not say where it came from: drop it")
        if letter.stream == TICKS:  # whole batches, those with a malformed row too
            headers = {**letter.headers, REPLAYED: "1"}
            await self._publisher.publish_message(letter.subject, letter.payload, headers)
        elif letter.reason is Reason.MALFORMED_ROW:
            [batch] = encode_batches(_row(letter), correlation_id=letter.correlation_id)
            await self._publisher.publish(batch, letter.subject)
        else:
            await self._publisher.publish_message(letter.subject, letter.payload, letter.headers)

    async def replay_all(
        self, selection: Selection, limit: int | None = None, progress: Callable[[Replayed], None] | None = None
    ) -> Replayed:
        """Replay the letters of a selection that are there now, oldest first, at most `limit`; count what happened.

        `progress` is told of the counts after each few letters.
        What fails again comes back as a new letter, behind those of this replay.

        Raises:
            StreamFull, BusUnreachable: the rest stays.
        """
        done = Replayed()
        some: list[DeadLetter] = []
        async for letter in self.walk(selection, limit):
            some.append(letter)
            if len(some) == AT_ONCE:
                await self._replay_some(some, done)
                some = []
                if progress is not None:
                    progress(done)
        await self._replay_some(some, done)
        return done

    async def _replay_some(self, letters: list[DeadLetter], done: Replayed) -> None:
        """Replay a few at once; what stops the replay is raised after all of them have ended."""
        ends = await asyncio.gather(*(self.replay(letter) for letter in letters), return_exceptions=True)
        stopped: BaseException | None = None
        for letter, end in zip(letters, ends, strict=True):
            if end is None:
                done.replayed += 1
            elif isinstance(end, NotReplayable):
                done.refuse(letter.seq, str(end))
            else:
                stopped = stopped or end
        if stopped is not None:
            raise stopped

    async def walk(
        self, selection: Selection, limit: int | None = None, *, headers_only: bool = False
    ) -> AsyncIterator[DeadLetter]:
        """Yield the letters of a selection that are there now, oldest first, at most `limit` of them."""
        given = 0
        if limit is not None and limit <= 0:
            return
        async for letter in walk_dead_letters(self._bus.js, selection, headers_only=headers_only):
            yield letter
            given += 1
            if given == limit:
                return

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await open_bucket(
                self._bus.js, BUCKET, "dead letters that a person has read", replicas=self._bus.replicas
            )
        return self._bucket

    async def _read(self, bucket: KeyValue) -> tuple[_Read, int]:
        try:
            entry = await bucket.get(READ_KEY)
        except (KeyNotFoundError, NotFoundError):
            return _Read("", []), 0
        return msgspec.json.decode(entry.value or b"", type=_Read), entry.revision or 0


def merge_ranges(ranges: Iterable[tuple[int, int]], first: int = 1) -> list[tuple[int, int]]:
    """Return the ranges (whole numbers, both ends inclusive) sorted and joined, without what lies before `first`."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if high < first:
            continue
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((max(low, first), high))
    return merged


def within(ranges: list[tuple[int, int]], seq: int) -> bool:
    """Tell whether a place lies in one of the ranges."""
    return any(low <= seq <= high for low, high in ranges)


def _row(letter: DeadLetter) -> pl.DataFrame:
    """Return the one bar of a letter of a malformed row, if it is one by the rules of now."""
    try:
        row = msgspec.json.decode(letter.payload, type=dict[str, Any])
        row["ts"] = None if row.get("ts") is None else datetime.fromisoformat(row["ts"])
        frame = pl.DataFrame([row], schema=BAR_SCHEMA)
    except (msgspec.MsgspecError, pl.exceptions.PolarsError, ValueError, TypeError, OverflowError) as error:
        raise NotReplayable(f"the row cannot be read as a bar ({error}): drop it") from error
    good, bad = split_valid(frame)
    if bad.height or good.height != 1:
        why = bad["reason"][0] if bad.height else f"{good.height} rows"
        raise NotReplayable(f"the row is still malformed ({why}): have its producer send it right, then drop this")
    return good

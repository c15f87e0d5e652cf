"""What a gap ledger must say after a look at what is missing now; pure.

The ledger holds runs of minutes without a break. A look covers a range; within it the standing gaps become exactly
the missing minutes, and each minute keeps what is known of it: cause, state, attempts. Outside it nothing changes.
Missing is what the store has no complete bar for: a minute whose bar is not complete is asked for like an absent one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise, repeat

from market_pipeline.market.gaps import LOST, NOT_LOADED, PENDING_SETTLE, VENDOR_MISSING
from market_pipeline.market.timeframes import MINUTE

OPEN, CONFIRMED, GIVEN_UP, REPAIRED = "open", "confirmed", "given_up", "repaired"
STATES = (OPEN, CONFIRMED, GIVEN_UP, REPAIRED)
STANDING = (OPEN, CONFIRMED, GIVEN_UP)
"""States of minutes that are still missing."""

_MOST_ATTEMPTS = 65_535

Run = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Gap:
    """A run of missing minutes [start, end) of one symbol (key), UTC.

    cause: vendor_missing, not_loaded, lost or pending_settle. state: open (repair will ask), confirmed (the vendor,
    asked often enough, has nothing), given_up (it could not be asked; repair asks again only when told to) or repaired
    (history: the minutes came). attempts: how often the vendor was asked and had no bar for them. failures: how often
    the question failed since the vendor last answered; `note` has the error of the last one. version orders what was
    said of the gap that starts here.
    """

    symbol: str
    start: datetime
    end: datetime
    cause: str
    first_seen: datetime
    state: str = OPEN
    attempts: int = 0
    failures: int = 0
    last_attempt: datetime | None = None
    note: str = ""
    version: int = 0

    @property
    def minutes(self) -> int:
        """Length of the run."""
        return (self.end - self.start) // MINUTE

    @property
    def standing(self) -> bool:
        """Whether the minutes are still missing."""
        return self.state in STANDING


@dataclass(frozen=True, slots=True)
class Look:
    """A look at what is missing in [start, end), taken at `now`.

    asked_at: when the vendor answered for all of the range, if it did: each missing minute has one more attempt
    behind it, and is confirmed once `attempts_to_confirm` are. cause: why minutes are missing, where nothing better is
    known of their run.
    """

    start: datetime
    end: datetime
    now: datetime
    asked_at: datetime | None = None
    attempts_to_confirm: int = 2
    cause: str = NOT_LOADED
    note: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A question for [start, end) that failed at `now`, with its error; `most` of them, and a gap is given up."""

    start: datetime
    end: datetime
    now: datetime
    error: str
    most: int


@dataclass(frozen=True)
class Changes:
    """What to write: gaps that are new or changed, and gaps whose start no gap has any more."""

    write: list[Gap] = field(default_factory=list)
    withdraw: list[Gap] = field(default_factory=list)


def reconcile(
    symbol: str, old: Iterable[Gap], missing: Iterable[Run], look: Look, causes: Iterable[str] | None = None
) -> Changes:
    """Make the standing gaps of the look's range equal the missing minutes.

    Args:
        old: gaps that overlap the range, those not standing are ignored. They may reach beyond it, or, after two
            processes wrote at once, overlap each other: then the one with more attempts counts.
        missing: runs that do not overlap; what lies outside the range is ignored.
        causes: of the runs, in their order; default: the look's.

    A known minute keeps cause, state, attempts, first_seen and note; its cause changes when the look names a better
    one than `not_loaded`, or when it was only `pending_settle`; `lost` is the best. A confirmed one stays as it is; one
    that was given up is open again once the vendor has answered for it. A known minute that is no longer missing
    becomes part of a gap in state repaired. Runs that touch and agree are one gap.
    """
    known = sorted((gap for gap in old if gap.standing), key=lambda gap: gap.start)
    runs = sorted(
        (max(a, look.start), min(b, look.end), cause)
        for (a, b), cause in zip(missing, repeat(look.cause) if causes is None else causes, strict=causes is not None)
        if a < look.end and b > look.start
    )
    pieces: list[Gap] = []
    for start, end, before, cause in _segments(known, runs, (look.start, look.end)):
        if not look.start <= start < look.end:
            judged = before
        elif cause is not None:
            judged = _still_missing(before or Gap(symbol, start, end, cause, look.now), cause, look)
        else:
            judged = before and replace(before, state=REPAIRED)
        if judged is not None:
            _append(pieces, replace(judged, start=start, end=end))
    return _changes(known, pieces)


def fail(old: Iterable[Gap], failure: Failure) -> Changes:
    """Count a failure for what is open or given up within its range; of a gap that reaches beyond, for that part.

    `old`: gaps that overlap the range, as of `reconcile`.
    """
    known = sorted((gap for gap in old if gap.standing), key=lambda gap: gap.start)
    pieces: list[Gap] = []
    for start, end, before, _ in _segments(known, [], (failure.start, failure.end)):
        if before is None:
            continue
        if failure.start <= start < failure.end and before.state != CONFIRMED:
            before = _failed(before, failure)
        _append(pieces, replace(before, start=start, end=end))
    return _changes(known, pieces)


def _failed(gap: Gap, failure: Failure) -> Gap:
    failures = min(gap.failures + 1, _MOST_ATTEMPTS)
    state = GIVEN_UP if failures >= failure.most else gap.state
    return replace(gap, failures=failures, last_attempt=failure.now, note=failure.error, state=state)


def _still_missing(gap: Gap, cause: str, look: Look) -> Gap:
    if gap.state == CONFIRMED:
        return gap
    if gap.cause != LOST and (cause != NOT_LOADED or gap.cause == PENDING_SETTLE):
        gap = replace(gap, cause=cause)
    if look.note:
        gap = replace(gap, note=look.note)
    if look.asked_at is None:
        return gap
    if gap.failures:
        gap = replace(gap, failures=0, note=look.note, state=OPEN)
    gap = replace(gap, attempts=min(gap.attempts + 1, _MOST_ATTEMPTS), last_attempt=look.asked_at)
    if gap.attempts >= look.attempts_to_confirm:
        return replace(gap, state=CONFIRMED, cause=VENDOR_MISSING)
    return gap


def _segments(
    known: Sequence[Gap], runs: Sequence[tuple[datetime, datetime, str]], cuts: Sequence[datetime]
) -> Iterable[tuple[datetime, datetime, Gap | None, str | None]]:
    """Cut time at every border; yield start, end, the gap that covers the segment, and the cause of the run that does.

    The cause is None where no run covers it.
    """
    borders = sorted(
        {*cuts, *(t for gap in known for t in (gap.start, gap.end)), *(t for run in runs for t in run[:2])}
    )
    covering: list[Gap] = []
    gap_at = run_at = 0
    for start, end in pairwise(borders):
        while gap_at < len(known) and known[gap_at].start <= start:
            covering.append(known[gap_at])
            gap_at += 1
        covering = [gap for gap in covering if gap.end > start]
        while run_at < len(runs) and runs[run_at][1] <= start:
            run_at += 1
        cause = runs[run_at][2] if run_at < len(runs) and runs[run_at][0] <= start else None
        yield start, end, max(covering, key=_weight, default=None), cause


def _weight(gap: Gap) -> tuple[bool, bool, int, int]:
    return gap.state == CONFIRMED, gap.state == GIVEN_UP, gap.attempts, gap.version


def _append(pieces: list[Gap], piece: Gap) -> None:
    last = pieces[-1] if pieces else None
    if last is None or last.end != piece.start or _known_of(last) != _known_of(piece):
        pieces.append(piece)
        return
    pieces[-1] = replace(last, end=piece.end, first_seen=min(last.first_seen, piece.first_seen))


def _known_of(gap: Gap) -> tuple[object, ...]:
    return gap.cause, gap.state, gap.attempts, gap.failures, gap.last_attempt, gap.note


def _changes(known: Sequence[Gap], pieces: Sequence[Gap]) -> Changes:
    before = {gap.start: gap for gap in known}
    starts = {piece.start for piece in pieces}

    def changed(piece: Gap) -> bool:
        was = before.get(piece.start)
        return was is None or replace(was, version=0) != replace(piece, version=0)

    return Changes(
        write=[piece for piece in pieces if changed(piece)],
        withdraw=[gap for gap in known if gap.start not in starts],
    )

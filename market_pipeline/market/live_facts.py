"""What goes into the live bars of a symbol and what comes out besides bars: rules, batches, state, counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LiveRules:
    """Say when a window closes and until when it may change; ms of event time.

    delay_ms: a window closes when everything before its end and this much more is proven to have come: more than 0
        where the vendor's ticks come later than the proof allows for. lateness_ms: so long after its end a window takes
        late ticks. ahead_ms: ticks that lie so far ahead of their own arrival have a wrong time and make no bar.
    """

    delay_ms: int = 0
    lateness_ms: int = 120_000
    ahead_ms: int = 60_000

    def __post_init__(self) -> None:
        if not 0 <= self.delay_ms <= self.lateness_ms or self.ahead_ms < 0:
            raise ValueError("a window must close before it becomes final: 0 <= delay_ms <= lateness_ms")


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """Hold what a batch of ticks says of itself: its place in the stream and the claims of its headers; epoch ms.

    session_started, proven: every tick of the session in [started, proven) is in this batch or an earlier one.
    alive: the session's last sign of life; what comes after it is in this batch or a later one.
    lost_from: ticks in [lost_from, session_started) may be lost. received: when the newest tick was received.
    """

    seq: int
    batch_id: int
    epoch: int
    session_id: str
    session_started: int
    proven: int
    alive: int
    lost_from: int | None = None
    received: int = 0


@dataclass(frozen=True, slots=True)
class ProofState:
    """Hold what a Proof knows, to be kept across a restart; epoch ms.

    seen_from: every batch of ticks since then has been seen; None: not known yet. claims: (session, start, proven).
    losses: (start, end) in which ticks may be missing.
    """

    seen_from: int | None
    claims: tuple[tuple[str, int, int], ...] = ()
    losses: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class SymbolState:
    """Hold what a restart needs of one symbol, besides the batches from `from_seq` on.

    through_seq: the last batch that was taken. epoch: that of the batch at from_seq. floor: windows that open before
    are final. revision: the highest given.
    """

    from_seq: int
    through_seq: int
    proof: ProofState
    epoch: int = 0
    floor: int = 0
    revision: int = 0


@dataclass(slots=True)
class LiveCounts:
    """Count ticks (late, late_dropped: beyond the lateness, ahead, malformed, other_kind, crossed), batches
    (duplicates, fenced) and bars (published once, revisions).

    superseded: ticks of an older epoch that the newer one brought as well. A late tick is counted once, though it
    changes a second and a minute.
    """

    batches: int = 0
    ticks: int = 0
    late: int = 0
    late_dropped: int = 0
    ahead: int = 0
    malformed: int = 0
    other_kind: int = 0
    crossed: int = 0
    superseded: int = 0
    duplicates: int = 0
    fenced: int = 0
    bars: int = 0
    revisions: int = 0


def first_state(next_seq: int, *, seen_from: int | None) -> SymbolState:
    """Return the state of a symbol of which nothing was ever taken; `seen_from` as in ProofState."""
    return SymbolState(next_seq, next_seq - 1, ProofState(seen_from))

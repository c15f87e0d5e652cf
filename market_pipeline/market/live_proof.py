"""What is proven of a symbol's live ticks: in which time none can be missing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from market_pipeline.market.live_facts import BatchFacts, ProofState

Ints = NDArray[np.int64]


class Proof:
    """Judge which windows lie whole in one uninterrupted session of the symbol, of which every batch has been seen.

    A session claims the time from its start up to where all has come: a window that reaches beyond it is not proven
    yet, however long ago it ended. What is claimed never starts before the first batch that was seen.
    """

    def __init__(self, state: ProofState) -> None:
        self._seen_from = state.seen_from
        # An interruption on our side parts a session in two claims: hence the number beside its id.
        self._reading = 0
        self._claims: dict[tuple[str, int], tuple[int, int]] = {(name, 0): (a, b) for name, a, b in state.claims}
        self._losses: set[tuple[int, int]] = set(state.losses)

    def claim(self, batch: BatchFacts) -> bool:
        """Take the claim of a batch; return whether windows judged before have to be judged again."""
        if self._seen_from is None:
            # What came before this sign of life may have been in a batch that nobody here has seen.
            self._seen_from = batch.alive
        key = (batch.session_id, self._reading)
        known = self._claims.get(key)
        started, lost_from = batch.session_started, batch.lost_from
        start, until = max(started, self._seen_from), batch.proven
        if known is not None:
            # A session that is not proven says with every batch that it starts now: the latest start counts.
            start, until = max(start, known[0]), max(until, known[1])
        self._claims[key] = (start, until)
        loss = None if lost_from is None or lost_from >= started else (lost_from, started)
        if loss is None or loss in self._losses:
            return known is None
        self._losses.add(loss)
        return True

    def interrupt(self) -> None:
        """Batches have been missed: nothing is claimed between the last sign of life and the next one."""
        self._seen_from = None
        self._reading += 1

    def lose(self, start: int, end: int) -> None:
        """Ticks in [start, end) may be missing, whatever a session claims."""
        self._losses.add((start, end))

    def complete(self, opens: Ints, length_ms: int) -> NDArray[np.bool_]:
        """Say of each window [open, open + length) whether it is proven."""
        proven = np.zeros(len(opens), dtype=bool)
        for start, until in self._claims.values():
            proven |= (opens >= start) & (opens + length_ms <= until)
        for start, end in self._losses:
            proven &= (opens >= end) | (opens + length_ms <= start)
        return proven

    def forget(self, before: int) -> None:
        """Drop what only concerns windows that opened before this."""
        latest = next(reversed(self._claims), None)
        self._claims = {key: claim for key, claim in self._claims.items() if claim[1] > before or key == latest}
        self._losses = {loss for loss in self._losses if loss[1] > before}

    def state(self) -> ProofState:
        """Return what is known."""
        return ProofState(self._seen_from, tuple(_joined(self._claims)), tuple(sorted(self._losses)))


def _joined(claims: dict[tuple[str, int], tuple[int, int]]) -> Iterable[tuple[str, int, int]]:
    """Yield the claims; of a session that was parted, all but the last under a name that no batch will bear."""
    last = dict(claims.keys())
    for (name, reading), (start, proven) in claims.items():
        yield (name if last[name] == reading else f"{name}#{reading}", start, proven)

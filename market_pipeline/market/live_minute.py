"""One minute of one symbol while its bars may still change: its ticks, and what of it is published."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_pipeline.market.sessions import MINUTE_MS

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SECOND_MS = 1000
_FIRST_ROOM = 64


class Minute:
    """Keep the ticks of a minute in the order of their arrival; times are epoch ms.

    first_seq, first_epoch: the batch that brought its first tick. received: when its newest tick was received.
    bar: its 1m bar as it was published last, one row.
    """

    __slots__ = (
        "_a",
        "_b",
        "_dirty",
        "_epochs",
        "_published",
        "_rows",
        "_ts",
        "bar",
        "first_epoch",
        "first_seq",
        "open",
        "received",
    )

    def __init__(self, opened: int, first_seq: int, first_epoch: int) -> None:
        """Begin without ticks."""
        self.open, self.first_seq, self.first_epoch = opened, first_seq, first_epoch
        self.received = 0
        self.bar: pl.DataFrame | None = None
        self._rows = 0
        self._ts: Ints = np.empty(_FIRST_ROOM, dtype=np.int64)
        self._a: Floats = np.empty(_FIRST_ROOM)
        self._b: Floats = np.empty(_FIRST_ROOM)
        self._epochs: list[tuple[int, int]] = []  # (first row, epoch)
        # by length of the window: opens with ticks or a proof that no published bar has; opens published -> complete
        self._dirty: dict[int, set[int]] = {SECOND_MS: set(), MINUTE_MS: set()}
        self._published: dict[int, dict[int, bool]] = {SECOND_MS: {}, MINUTE_MS: {}}

    @property
    def dirty(self) -> bool:
        """Whether a window has to be published, now or when it closes."""
        return any(self._dirty.values())

    def add(self, ts: Ints, a: Floats, b: Floats, epoch: int) -> int:
        """Append ticks: bid and ask, or price and size; return how many came after their second was published."""
        rows = self._rows + len(ts)
        if rows > len(self._ts):
            room = max(rows, 2 * len(self._ts)) - self._rows
            self._ts = np.concatenate([self._ts[: self._rows], np.empty(room, dtype=np.int64)])
            self._a = np.concatenate([self._a[: self._rows], np.empty(room)])
            self._b = np.concatenate([self._b[: self._rows], np.empty(room)])
        if not self._epochs or self._epochs[-1][1] != epoch:
            self._epochs.append((self._rows, epoch))
        here = slice(self._rows, rows)
        self._ts[here], self._a[here], self._b[here] = ts, a, b
        self._rows = rows
        seconds = (ts - ts % SECOND_MS).tolist()
        self._dirty[SECOND_MS].update(seconds)
        self._dirty[MINUTE_MS].add(self.open)
        published = self._published[SECOND_MS]
        return sum(second in published for second in seconds) if published else 0

    def ticks(self, start: int, end: int) -> tuple[Ints, Floats, Floats, int]:
        """Return ts, a and b of the ticks in [start, end), and how many of an older epoch are left out.

        A collector that lost its lease may have sent for a while what its successor sent as well: of a tick that one
        sent k times and the other m times max(k, m) stay.
        """
        ts, a, b = self._ts[: self._rows], self._a[: self._rows], self._b[: self._rows]
        doubled = 0
        if len(self._epochs) > 1:
            keep = self._not_doubled()
            inside = keep & (ts >= start) & (ts < end)
            doubled = self._rows - int(keep.sum())
        elif end - start >= MINUTE_MS:
            return ts, a, b, 0
        else:
            inside = (ts >= start) & (ts < end)
        return ts[inside], a[inside], b[inside], doubled

    def due(self, length_ms: int, closed: int) -> list[int]:
        """Return the opens of the windows that ended by `closed` and are not published as they are."""
        return [opened for opened in self._dirty[length_ms] if opened + length_ms <= closed]

    def publish(self, opened: int, length_ms: int, complete: bool) -> bool:
        """Note that a window is published; return whether it was before."""
        self._dirty[length_ms].discard(opened)
        published = self._published[length_ms]
        again = opened in published
        published[opened] = complete
        return again

    def published(self, length_ms: int) -> tuple[Ints, NDArray[np.bool_]]:
        """Return the opens of the windows published, and whether as complete."""
        published = self._published[length_ms]
        return (
            np.fromiter(published.keys(), np.int64, len(published)),
            np.fromiter(published.values(), bool, len(published)),
        )

    def touch(self, length_ms: int, opens: list[int]) -> None:
        """Let windows be published again."""
        self._dirty[length_ms].update(opens)

    def _not_doubled(self) -> NDArray[np.bool_]:
        keep = np.ones(self._rows, dtype=bool)
        bounds = [*(row for row, _ in self._epochs), self._rows]
        rows = list(zip(self._ts.tolist(), self._a.tolist(), self._b.tolist(), strict=True))
        for begin, end in pairwise(bounds):
            newer = Counter(rows[begin:end])
            for row in range(begin):
                if keep[row] and newer.get(rows[row], 0) > 0:
                    newer[rows[row]] -= 1
                    keep[row] = False
        return keep

"""Claims on ranges of series, so that two groups of batches in flight never compare and write the same bars at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from market_pipeline.stores.bars import BatchRange


def overlap(a: BatchRange, b: BatchRange) -> bool:
    """Tell whether two ranges of the same series share a moment (both ends inclusive)."""
    return (
        (a.symbol, a.timeframe, a.source) == (b.symbol, b.timeframe, b.source)
        and a.start_ts <= b.end_ts
        and b.start_ts <= a.end_ts
    )


def waves(ranges: Sequence[BatchRange]) -> list[list[int]]:
    """Split the indexes of `ranges` into waves, in order, so that no wave holds two that overlap."""
    out: list[list[int]] = []
    for index, one in enumerate(ranges):
        last = max((n for n, wave in enumerate(out) if any(overlap(one, ranges[i]) for i in wave)), default=-1)
        if last + 1 == len(out):
            out.append([])
        out[last + 1].append(index)
    return out


class Claims:
    """Hold the ranges that are being written in this process."""

    def __init__(self) -> None:
        self._held: list[BatchRange] = []
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, ranges: Sequence[BatchRange]) -> AsyncIterator[None]:
        """Wait until nobody holds a range that overlaps one of these, and hold them."""
        async with self._changed:
            await self._changed.wait_for(lambda: not any(overlap(a, b) for a in ranges for b in self._held))
            self._held.extend(ranges)
        try:
            yield
        finally:
            async with self._changed:
                for each in ranges:
                    self._held.remove(each)
                self._changed.notify_all()

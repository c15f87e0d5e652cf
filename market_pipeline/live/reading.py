"""What is stored in the ranges of a group's batches, and which of them the store refuses to read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog

from market_pipeline.errors import StoreQueryError
from market_pipeline.stores.bars import BatchRange, SeriesDigest

log = structlog.get_logger(__name__)

Found = SeriesDigest | StoreQueryError


class RangeReader:
    """Read ranges together, and where the store refuses that, halves of them: one that it refuses spoils no other.

    Args:
        read: returns what is stored in the ranges, in their order; raises StoreQueryError when the store refuses.
    """

    def __init__(self, read: Callable[[Sequence[BatchRange]], Awaitable[Sequence[SeriesDigest]]]) -> None:
        self._read = read
        self._proven: BatchRange | None = None

    async def digests(self, ranges: Sequence[BatchRange]) -> list[Found]:
        """Return for each range what is stored in it, or why the store does not say.

        Raises:
            StoreQueryError: the store also refuses what it read before, or refuses all and never read any: an outage,
                for which no range is to blame.
            StoreUnreachable, StoreAuthError: as `read`.
        """
        found: list[Found]
        try:
            found = [*await self._read(ranges)]
        except StoreQueryError as error:
            if self._proven is not None:
                await self._read([self._proven])
            found = await self._halves(ranges, error)
            refused = [each for each in found if isinstance(each, StoreQueryError)]
            if self._proven is None and len(refused) == len(ranges):
                raise
            log.warning("bridge_ranges_refused", ranges=len(refused), of=len(ranges), error=str(error))
        read = [one for one, each in zip(ranges, found, strict=True) if isinstance(each, SeriesDigest)]
        if read:
            self._proven = read[-1]
        return found

    async def _halves(self, ranges: Sequence[BatchRange], error: StoreQueryError) -> list[Found]:
        if len(ranges) == 1:
            return [error]
        middle = len(ranges) // 2
        found: list[Found] = []
        for half in (ranges[:middle], ranges[middle:]):
            try:
                found += await self._read(half)
            except StoreQueryError as of_half:
                found += await self._halves(half, of_half)
        return found

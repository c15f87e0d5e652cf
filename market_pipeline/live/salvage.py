"""What to do with a group that the store refuses: find the batches it does not take, and let all others land.

Poison is told from an outage by what else the store takes. A batch is given up only after it was refused a number of
times WHILE the store took others; deliveries are no measure, since an outage gives messages back again and again, and
not one of them is to blame.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from market_pipeline.errors import StoreQueryError, UnreadableBatch

log = structlog.get_logger(__name__)

Item = TypeVar("Item")

MOST_KNOWN = 4096
"""Batches under suspicion at once, several times what a consumer may hold; the oldest is forgotten beyond it."""


MAX_REFUSALS = 10
"""Refusals after which a batch that the store does not take, while it takes others, goes to dead letters."""
DOUBT_AFTER = 30
"""Refusals in a row after which what proved the store proves nothing any more."""


@dataclass(slots=True)
class Refusal:
    """The refusals of one batch that counted: how many, and what the store said first and last."""

    count: int
    first_error: str
    last_error: str


class Salvage(Generic[Item]):
    """Insert groups of batches, and tell which of them the store refuses.

    Args:
        insert: writes some items in one go; raises StoreQueryError when the store refuses them, UnreadableBatch when
            one of them is no batch.
        place: an item's place in its stream, the same at each of its deliveries.
        decode: returns an item decoded and compared row by row, which may reject it; asked of an item that is refused
            alone.
        writes: whether the store is asked to take rows of an item.
    """

    def __init__(
        self,
        insert: Callable[[Sequence[Item]], Awaitable[None]],
        place: Callable[[Item], int],
        decode: Callable[[Item], Awaitable[Item]],
        writes: Callable[[Item], bool],
    ) -> None:
        self._insert, self._place, self._decode, self._writes = insert, place, decode, writes
        self._known: OrderedDict[int, Refusal] = OrderedDict()
        self._proven: Item | None = None
        self._proven_refused = 0

    async def insert(self, items: Sequence[Item]) -> tuple[list[Item], list[tuple[Item, Refusal]]]:
        """Insert all items that the store takes; return them, and the refused ones with their refusals so far.

        Raises:
            StoreQueryError: the store refuses also what it took before: an outage, for which no batch is to blame.
            StoreUnreachable, StoreAuthError: as `insert`.
        """
        suspects = [item for item in items if self._place(item) in self._known]
        others = [item for item in items if self._place(item) not in self._known]
        refused: list[tuple[Item, StoreQueryError]] = []
        kept = await self._divide(others, refused) if others else []
        for item in suspects:  # alone, so that they do not spoil the group a second time
            kept += await self._divide([item], refused)
        taken = [item for item in kept if self._writes(item)]
        if refused:
            others_pass = bool(taken) or await self._takes_the_proven()
            noted = [(item, self._note(self._place(item), str(error), others_pass)) for item, error in refused]
            log.warning(
                "bridge_batches_refused", batches=len(refused), others_pass=others_pass, error=str(refused[0][1])
            )
        else:
            noted = []
        if taken:
            self._proven = taken[-1]
        for item in kept:
            self._known.pop(self._place(item), None)
        return kept, noted

    def forget(self, item: Item) -> None:
        """Forget an item that was given up."""
        self._known.pop(self._place(item), None)

    async def _divide(self, items: Sequence[Item], refused: list[tuple[Item, StoreQueryError]]) -> list[Item]:
        """Insert the items together, or where that fails halves of them; return those that the store took."""
        try:
            await self._insert(items)
            return list(items)
        except (StoreQueryError, UnreadableBatch) as error:
            if len(items) == 1:
                return await self._alone(items[0], error, refused)
            log.debug("bridge_insert_refused", batches=len(items), error=str(error))
            if isinstance(error, StoreQueryError) and not refused:
                await self._takes_the_proven()
        middle = len(items) // 2
        return await self._divide(items[:middle], refused) + await self._divide(items[middle:], refused)

    async def _alone(
        self, item: Item, error: StoreQueryError | UnreadableBatch, refused: list[tuple[Item, StoreQueryError]]
    ) -> list[Item]:
        """Try once more with the rows that change something; the decoder rejects what is no batch."""
        one = await self._decode(item)
        if one is not item or isinstance(error, UnreadableBatch):
            try:
                await self._insert([one])
                return [one]
            except StoreQueryError as second:
                error = second
        refused.append((one, error))
        return []

    async def _takes_the_proven(self) -> bool:
        """Insert what was taken last once more, which changes nothing: does the store still take it?

        Where nothing was ever taken the store may refuse everything. A proof that is refused again and again is given
        up, since the store's rules may have changed for it alone: what is taken next is the new one.

        Raises:
            StoreQueryError: it does not.
        """
        if self._proven is None:
            return False
        try:
            await self._insert([self._proven])
        except StoreQueryError:
            self._proven_refused += 1
            if self._proven_refused >= DOUBT_AFTER:
                self._proven, self._proven_refused = None, 0
            raise
        self._proven_refused = 0
        return True

    def _note(self, place: int, error: str, others_pass: bool) -> Refusal:
        refusal = self._known.setdefault(place, Refusal(0, error, error))
        self._known.move_to_end(place)
        refusal.count += others_pass
        refusal.last_error = error
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return refusal

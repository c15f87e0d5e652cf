"""Poison told from an outage, against a store of which every refusal is known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.errors import StoreQueryError, UnreadableBatch
from market_pipeline.live import salvage
from market_pipeline.live.salvage import Salvage


class Store:
    """Take numbers, all or none of a group, but not the poison; refuse everything while `away`."""

    def __init__(self, poison: set[int], unreadable: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.poison, self.unreadable, self.away = poison, unreadable, False
        self.held: set[int] = set()
        self.inserts = 0

    async def insert(self, items: Sequence[int]) -> None:
        self.inserts += 1
        if set(items) & self.unreadable:
            raise UnreadableBatch("no batch")
        if self.away or set(items) & self.poison:
            raise StoreQueryError(f"refused {self.inserts}")
        self.held |= set(items)

    def salvage(self) -> Salvage[int]:
        return Salvage(self.insert, lambda item: item, self.decode, lambda item: item > 0)

    async def decode(self, item: int) -> int:
        self.unreadable -= {item}  # as the bridge does: a rejected outcome writes nothing
        return item


@given(st.lists(st.sets(st.integers(1, 40), max_size=40), max_size=8), st.sets(st.integers(1, 40), max_size=6))
def test_everything_but_the_poison_lands_and_only_the_poison_is_counted(
    groups: list[set[int]], poison: set[int]
) -> None:
    async def run() -> None:
        store = Store(poison)
        saved = store.salvage()
        counted: dict[int, int] = {}
        for group in groups:
            try:
                kept, refused = await saved.insert(sorted(group))
            except StoreQueryError:
                raise AssertionError("the store was never away") from None
            assert set(kept) == group - poison
            assert {item for item, _ in refused} == group & poison
            for item, refusal in refused:
                counted[item] = counted.get(item, 0) + bool(store.held)
                assert refusal.count == counted[item], "only while the store had taken something"
        assert store.held == {item for group in groups for item in group} - poison

    asyncio.run(run())


async def test_an_outage_blames_nobody_and_ends_at_once() -> None:
    store = Store({7})
    saved = store.salvage()
    await saved.insert([1, 2, 3])
    for expected in (1, 2):
        [(_, refusal)] = (await saved.insert([7]))[1]
        assert refusal.count == expected, "the proven batch was taken once more"
    store.away = True
    for _ in range(20):
        before = store.inserts
        with pytest.raises(StoreQueryError):
            await saved.insert([7, *range(10, 40)])
        assert store.inserts - before <= 2, "no search in a store that refuses everything"
    store.away = False
    kept, [(item, refusal)] = await saved.insert([7, *range(10, 40)])
    assert (kept, item, refusal.count) == (list(range(10, 40)), 7, 3)
    assert (refusal.first_error, refusal.last_error) == ("refused 2", f"refused {store.inserts}")


async def test_before_anything_was_taken_nothing_is_counted() -> None:
    store = Store(set())
    store.away = True
    saved = store.salvage()
    for _ in range(20):
        _, refused = await saved.insert([1, 2])
        assert [refusal.count for _, refusal in refused] == [0, 0]


async def test_a_proof_that_the_store_does_not_take_any_more_is_not_believed_for_ever() -> None:
    store = Store(set())
    saved = store.salvage()
    await saved.insert([1])
    store.poison = {1, 2}  # its rules have changed
    for _ in range(salvage.DOUBT_AFTER):
        with pytest.raises(StoreQueryError):
            await saved.insert([2, 3])
    kept, [(item, refusal)] = await saved.insert([2, 3])
    assert (kept, item, refusal.count) == ([3], 2, 1)


async def test_what_was_given_up_or_stored_is_forgotten_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(salvage, "MOST_KNOWN", 3)
    store = Store({1, 2, 3, 4, 5})
    saved = store.salvage()
    await saved.insert([9])
    await saved.insert([1, 2, 3, 4, 5])
    assert sorted(saved._known) == [3, 4, 5]
    saved.forget(5)
    store.poison.clear()
    await saved.insert([3, 4])
    assert not saved._known


async def test_one_that_is_no_batch_does_not_hold_up_the_others() -> None:
    store = Store(set(), unreadable={3})
    kept, refused = await store.salvage().insert([1, 2, 3, 4])
    assert (kept, refused) == ([1, 2, 3, 4], [])

"""Ranges that the store refuses to read, told from an outage, against a store of which every refusal is known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.errors import StoreQueryError
from market_pipeline.live.reading import RangeReader
from market_pipeline.stores.bars import BatchRange, SeriesDigest

AT = datetime(2024, 3, 5, tzinfo=UTC)


def ranges(*symbols: int) -> list[BatchRange]:
    return [BatchRange(str(symbol), "1m", "live_aggregated", AT, AT) for symbol in symbols]


class Store:
    """Say of each range its symbol, all or none of a group, but nothing of the poison; refuse all while `away`."""

    def __init__(self, poison: set[int]) -> None:
        self.poison, self.away, self.reads = poison, False, 0

    async def read(self, given: Sequence[BatchRange]) -> list[SeriesDigest]:
        self.reads += 1
        symbols = [int(each.symbol) for each in given]
        if self.away or set(symbols) & self.poison:
            raise StoreQueryError("refused")
        return [SeriesDigest(symbol, symbol) for symbol in symbols]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60, unique=True), st.sets(st.integers(1, 60), max_size=6))
def test_all_but_the_poison_is_read_in_its_order(symbols: list[int], poison: set[int]) -> None:
    async def run() -> None:
        reader = RangeReader(Store(poison).read)
        await reader.digests(ranges(99))
        found = await reader.digests(ranges(*symbols))
        assert len(found) == len(symbols)
        for symbol, each in zip(symbols, found, strict=True):
            assert isinstance(each, StoreQueryError) if symbol in poison else each == (symbol, symbol)

    asyncio.run(run())


async def test_an_outage_blames_no_range_and_ends_at_once() -> None:
    store = Store(set())
    reader = RangeReader(store.read)
    store.away = True
    with pytest.raises(StoreQueryError):  # nothing was ever read
        await reader.digests(ranges(1, 2))
    store.away = False
    await reader.digests(ranges(1, 2))
    store.away, store.reads = True, 0
    with pytest.raises(StoreQueryError):
        await reader.digests(ranges(*range(3, 40)))
    assert store.reads == 2, "no search in a store that refuses everything"

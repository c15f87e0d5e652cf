"""Groups in flight never hold the same bars; those that do not touch never wait for each other."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.live.claims import Claims, overlap, waves
from market_pipeline.stores.bars import BatchRange

T0 = datetime(2024, 3, 4, tzinfo=UTC)


def span(symbol: str, first: int, last: int) -> BatchRange:
    return BatchRange(symbol, "1m", "vendor_historical", T0 + timedelta(minutes=first), T0 + timedelta(minutes=last))


ranges = st.lists(
    st.tuples(st.sampled_from("AB"), st.integers(0, 20), st.integers(0, 8)).map(
        lambda t: span(t[0], t[1], t[1] + t[2])
    ),
    max_size=12,
)


@given(ranges)
def test_waves_keep_all_in_order_and_never_overlap(items: list[BatchRange]) -> None:
    split = waves(items)
    assert sorted(i for wave in split for i in wave) == list(range(len(items)))
    for wave in split:
        assert not any(overlap(items[a], items[b]) for a in wave for b in wave if a < b)
    place = {i: n for n, wave in enumerate(split) for i in wave}
    for a in range(len(items)):
        for b in range(a + 1, len(items)):
            if overlap(items[a], items[b]):
                assert place[a] < place[b], "a later batch of the same bars must come later"


async def test_a_claim_waits_for_what_it_overlaps_and_for_nothing_else() -> None:
    claims = Claims()
    order: list[str] = []

    async def work(name: str, item: BatchRange, seconds: float) -> None:
        async with claims.hold([item]):
            order.append(f"{name} in")
            await asyncio.sleep(seconds)
            order.append(f"{name} out")

    first = asyncio.create_task(work("first", span("A", 0, 10), 0.05))
    await asyncio.sleep(0.01)
    await asyncio.gather(work("other", span("B", 0, 10), 0), work("same", span("A", 10, 12), 0), first)
    assert order.index("other out") < order.index("first out") < order.index("same in")

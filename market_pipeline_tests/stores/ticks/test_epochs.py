"""Two collectors of one symbol: the later epoch reigns, nothing doubles, and what may be lost is recorded."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from market_pipeline.settings import PostgresSettings
from market_pipeline.stores.ticks import Outcome, TickBatch, TickReader, TickStore
from market_pipeline_tests.stores.ticks.frames import START, batch, batches, new_symbol, quotes, values

FAR = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


def multiset(frame: pl.DataFrame) -> Counter[tuple[object, ...]]:
    return Counter(values(frame))


async def test_a_later_epoch_fences_an_older_one(database: PostgresSettings, reader: TickReader) -> None:
    symbol = new_symbol()
    before = batch(quotes(symbol, (10, 1.0, 1.1)), epoch=4)
    reigning = batch(quotes(symbol, (50, 1.0, 1.1)), epoch=5, collector="b")
    late = batch(quotes(symbol, (20, 1.2, 1.3), (60, 1.2, 1.3)), epoch=4)
    later = batch(quotes(symbol, (51, 1.2, 1.3)), epoch=4)
    async with TickStore(database) as store:
        report = await store.store([before, reigning, late, later])
        assert [result.outcome for result in report.results] == ["stored", "stored", "fenced", "fenced"]
        assert report.of(Outcome.FENCED)[0].detail == "epoch 4 of a, 5 reigns"
        # an old batch that was stored and is delivered again is no news
        assert (await store.store([before])).counts == {Outcome.DUPLICATE: 1}
        assert (await store.store([late, late])).counts == {Outcome.FENCED: 1, Outcome.DUPLICATE: 1}
        assert (await store.epochs())[symbol] == 5
        losses = await store.losses(symbol, *FAR)
    assert reader.ticks(symbol, *FAR)["ts"].dt.millisecond().to_list() == [10, 50]
    # from the fenced batch's first tick to the first of the collector that reigns; `later` had nothing of its own
    milliseconds = [START + timedelta(milliseconds=ms) for ms in (20, 50)]
    assert losses.select("start", "end", "cause", "session_id", "collector_id").rows() == [
        (*milliseconds, "lease", "session-a", "a")
    ]


async def test_epochs_below_the_lease_are_fenced(database: PostgresSettings) -> None:
    symbol, other = new_symbol(), new_symbol()

    def old() -> list[TickBatch]:
        return [batch(quotes(name, (1, 1.0, 1.1)), epoch=3) for name in (symbol, other)]

    async with TickStore(database) as store:
        assert (await store.store(old(), min_epoch=4)).counts == {Outcome.FENCED: 2}
        report = await store.store(old(), min_epoch={symbol: 4})
        assert [result.outcome for result in report.results] == [Outcome.FENCED, Outcome.STORED]
        assert symbol not in await store.epochs()


async def test_forgotten_epochs_may_begin_from_below(database: PostgresSettings, reader: TickReader) -> None:
    """The leases' bucket was lost: its count begins anew, and what both collectors saw still stays once."""
    symbol = new_symbol()
    both = quotes(symbol, (1, 1.0, 1.1), (2, 1.0, 1.1))
    async with TickStore(database) as store:
        await store.store([batch(both, epoch=900)])
        assert (await store.store([batch(both, epoch=1)])).counts == {Outcome.FENCED: 1}
        await store.forget_epochs([symbol])
        report = await store.store([batch(both, epoch=1)])
    assert (report.ticks, report.superseded) == (2, 2)
    assert values(reader.ticks(symbol, *FAR)) == values(both)


@pytest.mark.parametrize("seed", range(12))
async def test_overlapping_collectors_never_double_a_tick(
    database: PostgresSettings, reader: TickReader, seed: int
) -> None:
    """Up to three collectors see cuts of one stream that has real repeats; their batches arrive mixed."""
    chance = random.Random(seed)
    symbol, at = new_symbol(), 0
    rows = []
    for _ in range(80):
        at += chance.choice((0, 0, 1, 40))
        rows.append((at, chance.choice((1.0, 1.1)), 1.2))
    truth = quotes(symbol, *rows)
    first = truth.slice(0, chance.randint(30, 60))
    second = truth.slice(start := chance.randint(10, 40), chance.randint(20, 40))
    third = truth.slice(chance.randint(start, 70))
    queues = [
        batches(cut, chance.randint(1, 9), epoch, collector=str(epoch))
        for epoch, cut in enumerate((first, second, third), 3)
    ]
    arrivals: list[TickBatch] = []
    while any(queues):
        # the older ones mostly first, as leases make it
        arrivals.append(
            next(
                queue
                for queue in queues
                if queue
                and (chance.random() < 0.8 or queue is queues[-1] or not any(queues[queues.index(queue) + 1 :]))
            ).pop(0)
        )
    expected: Counter[tuple[object, ...]] = Counter()
    reigning = 0
    seen: dict[int, Counter[tuple[object, ...]]] = {}
    for arrival in arrivals:
        if arrival.epoch >= reigning:
            reigning = arrival.epoch
            seen[reigning] = seen.get(reigning, Counter()) + multiset(arrival.frame)
    for counts in seen.values():
        expected |= counts
    stored = superseded = 0
    async with TickStore(database) as store:
        while arrivals:
            size = chance.randint(1, 12)
            report = await store.store(arrivals[:size])
            stored, superseded = stored + report.ticks, superseded + report.superseded
            # half of them come again at once
            assert (await store.store(arrivals[: size // 2])).ticks == 0
            del arrivals[:size]
    found = reader.ticks(symbol, *FAR)
    assert multiset(found) == expected
    assert found.height == stored - superseded
    assert multiset(found) <= multiset(truth)

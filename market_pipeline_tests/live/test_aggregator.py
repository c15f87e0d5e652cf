"""The aggregator against a real NATS: bars come out once, late ticks as revisions, and a restart changes nothing."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from market_pipeline.bus import tick_reader
from market_pipeline.bus.checkpoint import Checkpoints
from market_pipeline.bus.losses import LossBucket
from market_pipeline.bus.session import open_bus
from market_pipeline.bus.streams import LIVE, TICKS
from market_pipeline.bus.tick_envelope import LATE, LOSS_MARGIN
from market_pipeline.errors import SettingsError
from market_pipeline.live.aggregator import Aggregator, service
from market_pipeline.live.aggregator.book import BookState
from market_pipeline.live.aggregator.health import problems_of
from market_pipeline.market.live_facts import LiveRules
from market_pipeline.tasks import end_tasks
from market_pipeline_tests.live.aggregating import (
    COLUMNS,
    EUR,
    GBP,
    MINUTE,
    T0,
    Bench,
    at,
    eventually,
    expected,
    open_bench,
)
from market_pipeline_tests.servers import NatsProcess


@pytest.fixture(scope="module")
def server() -> Iterator[NatsProcess]:
    with NatsProcess() as running:
        yield running


@pytest.fixture
async def bench(server: NatsProcess) -> AsyncIterator[Bench]:
    async with open_bench(server) as opened:
        yield opened


def some_quotes(number: int, minutes: int = 3, seed: int = 5) -> list[tuple[int, float, float]]:
    rng = random.Random(seed)
    moments = sorted(rng.randrange(0, minutes * MINUTE) for _ in range(number))
    prices = [rng.randint(108_000, 108_100) / 1e5 for _ in moments]
    return [(T0 + moment, price, price + 0.0001) for moment, price in zip(moments, prices, strict=True)]


async def test_quotes_become_the_bars_of_history_published_once(bench: Bench) -> None:
    rows = some_quotes(200)
    async with bench.running(EUR, GBP, run_id="run-7") as aggregator:
        for begin in range(0, 200, 20):
            batch = rows[begin : begin + 20]
            await bench.send(batch, alive=batch[-1][0])
            await bench.send(alive=batch[-1][0], symbol="GBPUSD")
        await bench.send(rows[:1], alive=T0 + 3 * MINUTE, symbol="GBPUSD")
        await bench.send(alive=T0 + 3 * MINUTE)
        made = await bench.until(lambda frame: frame.height == 3)
        assert made.select(COLUMNS).rows() == expected(rows, "1m")
        assert made["complete"].all()
        seconds = await bench.last("1s")
        assert seconds.select(COLUMNS).rows() == expected(rows, "1s")
        assert (await bench.until(lambda frame: frame.height == 1, symbol="GBPUSD"))["open"].to_list()
        health = aggregator.health()
        assert health.problems == ()
        assert (health.ticks, health.revisions, health.pending, health.unpublished) == (201, 0, 0, 0)
    assert len(await bench.bars()) == 3
    headers = [headers for headers, _ in await bench.batches()]
    assert {each.source for each in headers} == {"live_aggregated"}
    assert {each.run_id for each in headers} == {"run-7"}
    assert all({"received", "decoded", "encoded", "published"} <= set(each.stages) for each in headers)


async def test_a_flush_shares_its_ids_over_symbols_and_timeframes(bench: Bench) -> None:
    for symbol in ("EURUSD", "GBPUSD"):
        await bench.send([(T0, 1.0, 1.0)], alive=T0 + MINUTE, symbol=symbol)
    async with bench.running(EUR, GBP):
        await bench.until(lambda frame: frame.height == 1)
        await bench.until(lambda frame: frame.height == 1, symbol="GBPUSD")
    batches = await bench.batches()
    assert {(headers.symbol, headers.timeframe) for headers, _ in batches} == {
        (symbol, code) for symbol in ("EURUSD", "GBPUSD") for code in ("1s", "1m")
    }
    assert len({(headers.correlation_id, headers.batch_id) for headers, _ in batches}) == 1


async def test_late_ticks_revise_and_later_ones_are_left_to_repair(bench: Bench) -> None:
    async with bench.running(EUR, rules=LiveRules(lateness_ms=MINUTE)) as aggregator:
        await bench.send([(T0 + 5, 1.0, 1.0)], alive=T0 + MINUTE)
        first = await bench.until(lambda frame: frame.height == 1)
        await bench.send([(T0 + 6, 2.0, 2.0)], alive=T0 + MINUTE + 500)
        second = await bench.until(lambda frame: frame["trades"].to_list() == [2])
        assert second["complete"].to_list() == [True]
        assert second["revision"][0] > first["revision"][0]
        await bench.send(alive=T0 + 3 * MINUTE)
        await bench.send([(T0 + 7, 3.0, 3.0)] * 2, alive=T0 + 3 * MINUTE)
        third = await bench.until(lambda frame: frame["complete"].to_list() == [False])
        assert third["trades"].to_list() == [2], "the bar keeps what it has, and says that it is not whole"
        await eventually(lambda: aggregator.health().late_dropped == 2 and not aggregator.health().losses_waiting)
        assert aggregator.health().late == 1
    losses = await LossBucket(bench.bus).all()
    assert [(loss.symbol, loss.start, loss.end, loss.cause) for loss in losses] == [
        ("EURUSD", at(T0), at(T0 + MINUTE), "late")
    ]


async def test_batches_that_come_twice_or_of_a_lost_lease_change_nothing(bench: Bench) -> None:
    async with bench.running() as aggregator:
        await bench.send([(T0, 1.0, 1.0)], alive=T0, batch_id=11)
        await bench.send([(T0, 1.0, 1.0)], alive=T0, batch_id=11)
        await bench.send([(T0 + 1, 2.0, 2.0)], alive=T0 + 1, epoch=3, session="t")
        await bench.send([(T0 + 2, 9.0, 9.0)], alive=T0 + 2, epoch=2)
        await bench.send(alive=T0 + MINUTE, epoch=3)
        made = await bench.until(lambda frame: frame.height == 1)
        assert made.select("close", "trades").rows() == [(2.0, 2)]
        assert (aggregator.health().duplicates, aggregator.health().fenced) == (1, 1)


async def test_a_batch_that_cannot_be_read_takes_the_proof_of_its_minute(bench: Bench) -> None:
    async with bench.running() as aggregator:
        await bench.send([(T0, 1.0, 1.0)], alive=T0 + MINUTE)
        await bench.send([(T0 + MINUTE + 1, 1.0, 1.0)], alive=T0 + MINUTE + 1, **{"Schema-Version": "9"})
        await bench.send([(T0 + MINUTE + 9000, 1.0, 1.0)], alive=T0 + 2 * MINUTE)
        await bench.send([(T0 + 2 * MINUTE + 9000, 1.0, 1.0)], alive=T0 + 4 * MINUTE)
        made = await bench.until(lambda frame: frame.height == 3)
        assert made["complete"].to_list() == [True, False, False]
        await eventually(lambda: not aggregator.health().losses_waiting)
        assert aggregator.health().unreadable == 1
    losses = await LossBucket(bench.bus).all()
    assert [(loss.start, loss.end, loss.cause) for loss in losses] == [
        (at(T0 + MINUTE), at(T0 + 2 * MINUTE) + LATE, "unreadable")
    ]


async def test_a_batch_that_never_came_takes_the_proof_of_its_minute(bench: Bench) -> None:
    """Its number lacks: found after a restart too, and then not again; what comes twice lacks nothing."""
    async with bench.running() as aggregator:
        await bench.send([(T0, 1.0, 1.0)], alive=T0 + 30_000, number=1)
        await bench.send([(T0 + MINUTE + 1, 1.0, 1.0)], alive=T0 + MINUTE + 5000, number=2)
        await bench.send([(T0 + MINUTE + 1, 1.0, 1.0)], alive=T0 + MINUTE + 5000, number=2)
        await bench.until(lambda frame: frame["complete"].to_list() == [True])
        await eventually(lambda: aggregator.health().ticks == 3)
    async with bench.running() as aggregator:
        await bench.send([(T0 + MINUTE + 9000, 1.0, 1.0)], alive=T0 + MINUTE + 9000, number=4)
        await bench.send(alive=T0 + 2 * MINUTE + 9000, number=5)
        await bench.until(lambda frame: frame["complete"].to_list() == [True, False])
        await bench.send([(T0 + 2 * MINUTE + 9500, 1.0, 1.0)], alive=T0 + 2 * MINUTE + 9500, number=6)
        await eventually(lambda: aggregator.health().losses == {"missing": 1})
    async with bench.running() as aggregator:
        await bench.send([(T0 + 3 * MINUTE, 1.0, 1.0)], alive=T0 + 4 * MINUTE, epoch=2, number=1)
        made = await bench.until(lambda frame: frame.height == 4)
        assert made["complete"].to_list() == [True, False, True, True]
        assert aggregator.health().losses == {}
    assert [(loss.start, loss.end, loss.cause, loss.session_id) for loss in await LossBucket(bench.bus).all()] == [
        (at(T0 + MINUTE + 5000) + LATE - LOSS_MARGIN, at(T0 + MINUTE + 9000) + LOSS_MARGIN, "missing", "s")
    ]


async def test_without_batches_bars_come_out_unproven_and_are_proven_later(bench: Bench) -> None:
    async with bench.running(silent_ms=300):
        await bench.send([(T0, 1.0, 1.0)], alive=T0 + 10)
        made = await bench.until(lambda frame: frame.height == 1)
        assert made["complete"].to_list() == [False]
        await bench.send(alive=T0 + MINUTE)
        await bench.until(lambda frame: frame["complete"].to_list() == [True])


async def test_a_symbol_is_silent_though_another_streams_on(bench: Bench) -> None:
    async def stream() -> None:
        at = T0
        while True:
            await bench.send([(at, 1.0, 1.0)], alive=at + 10, symbol="GBPUSD")
            at += 20
            await asyncio.sleep(0.02)

    async with bench.running(EUR, GBP, silent_ms=1500):
        await bench.send([(T0, 1.0, 1.0)], alive=T0 + 10)
        streaming = asyncio.create_task(stream())
        try:
            made = await bench.until(lambda frame: frame.height == 1)
        finally:
            await end_tasks((streaming,))
        assert made["complete"].to_list() == [False]
        assert await bench.bars(symbol="GBPUSD") == [], "of it everything came in time"


# ------------------------------------------------------------------------------------------------- restarts


@pytest.mark.parametrize("cut", [3, 9, 16])
async def test_a_restart_republishes_what_it_said_and_goes_on(bench: Bench, cut: int) -> None:
    """Ended without warning in the middle of a minute, with its last checkpoint somewhere before."""
    rows = some_quotes(200)
    batches = [rows[begin : begin + 10] for begin in range(0, 200, 10)]
    options: dict[str, Any] = {"rules": LiveRules(lateness_ms=MINUTE)}
    crashing = asyncio.create_task(_crash_after(bench, batches[:cut], options))
    await crashing
    before = {code: await bench.last(code) for code in ("1m", "1s")}
    async with bench.running(EUR, **options) as aggregator:
        for batch in batches[cut:]:
            await bench.send(batch, alive=batch[-1][0])
        await bench.send(alive=T0 + 3 * MINUTE)
        made = await bench.until(lambda frame: frame.height == 3)
        assert made.select(COLUMNS).rows() == expected(rows, "1m")
        assert made["complete"].all()
        assert (await bench.last("1s")).select(COLUMNS).rows() == expected(rows, "1s")
        assert aggregator.health().late_dropped == 0
    # whatever was said of a bar before and after, it is the same: the store writes nothing new
    for code, frame in before.items():
        said = await bench.bars(code)
        for row in frame.iter_slices(1):
            values = {each.drop("revision").row(0) for each in said if each["ts"][0] == row["ts"][0]}
            assert len(values) == 1


async def _crash_after(bench: Bench, batches: list[list[Any]], options: dict[str, Any]) -> None:
    aggregator = Aggregator(bench.bus, (EUR,), lease_ttl_s=2.0, **options)
    task = asyncio.create_task(aggregator.run(asyncio.Event()))
    for place, batch in enumerate(batches):
        seq = await bench.send(batch, alive=batch[-1][0])
        if place == len(batches) // 2:
            # a checkpoint in the middle, and some more batches after it
            await eventually(lambda seq=seq: aggregator._saved is not None and aggregator._saved.through_seq >= seq)
    await eventually(lambda: aggregator.health().ticks == sum(map(len, batches)))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_restart_never_goes_back_to_an_earlier_word(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch by batch, as after a long absence: the state of before a late tick must not be published once more."""
    monkeypatch.setattr(service, "FETCH", 1)
    monkeypatch.setattr(service, "FLUSH_S", 0.0)
    async with bench.running():
        await bench.send([(T0, 1.0, 1.0)], alive=T0 + MINUTE)
        await bench.until(lambda frame: frame["trades"].to_list() == [1])
        await bench.send([(T0 + 1, 2.0, 2.0)], alive=T0 + MINUTE)
        await bench.until(lambda frame: frame["trades"].to_list() == [2])
    said = len(await bench.bars())
    async with bench.running():
        await bench.send([(T0 + MINUTE, 2.0, 2.0)], alive=T0 + 2 * MINUTE)
        await bench.until(lambda frame: frame.height == 2)
    again = (await bench.bars())[said:]
    assert [(row["ts"][0], row["trades"][0]) for row in again] == [(at(T0), 2), (at(T0 + MINUTE), 1)]


async def test_a_second_aggregator_stands_by_and_takes_over(bench: Bench) -> None:
    stop = asyncio.Event()
    first = Aggregator(bench.bus, (EUR,), lease_ttl_s=2.0)
    task = asyncio.create_task(first.run(stop))
    await eventually(lambda: first.health().state == "running")
    async with bench.running(settled=False) as second:
        await bench.send([(T0, 1.0, 1.0)], alive=T0 + MINUTE)
        await bench.send([(T0 + MINUTE, 1.0, 1.0)], alive=T0 + MINUTE)
        await bench.until(lambda frame: frame.height == 1)
        await eventually(lambda: first.health().ticks == 2)
        assert (second.health().state, second.health().problems, second.health().ticks) == ("standby", (), 0)
        stop.set()
        await task
        assert first.health().state == "stopped"
        await bench.send([(T0 + MINUTE + 1, 1.0, 1.0)], alive=T0 + 2 * MINUTE)
        made = await bench.until(lambda frame: frame.height == 2)
        assert made.select("trades", "complete").rows() == [(1, True), (2, True)]
        assert second.health().epoch > first.health().epoch


async def test_sets_of_other_names_are_aggregated_at_the_same_time(bench: Bench) -> None:
    async with bench.running(EUR), bench.running(GBP, name="two"), bench.running(GBP, settled=False) as unnamed:
        for symbol in ("EURUSD", "GBPUSD"):
            await bench.send([(T0, 1.0, 1.0)], alive=T0 + MINUTE, symbol=symbol)
            await bench.until(lambda frame: frame.height == 1, symbol=symbol)
        await eventually(lambda: not unnamed.health().healthy)
        assert unnamed.health().state == "standby"
        assert "works on other symbols under the name 'default'" in unnamed.health().problems[0]
    for name, symbol in (("default", "EURUSD"), ("two", "GBPUSD")):
        known = await Checkpoints(bench.bus).load(f"aggregator.{name}", BookState)
        assert known is not None
        assert list(known.symbols) == [symbol]


async def test_a_fresh_aggregator_makes_bars_of_all_that_the_stream_holds(bench: Bench) -> None:
    rows = some_quotes(100)
    for begin in range(0, 100, 10):
        batch = rows[begin : begin + 10]
        await bench.send(batch, alive=batch[-1][0])
    await bench.send(alive=T0 + 3 * MINUTE)
    async with bench.running():
        made = await bench.until(lambda frame: frame.height == 3)
        assert made.select(COLUMNS).rows() == expected(rows, "1m")
        assert made["complete"].all(), "nothing went before the first message of all"


async def test_a_stream_whose_first_batch_is_not_the_first_of_its_symbol_is_not_believed_before_it(
    bench: Bench,
) -> None:
    await bench.send([(T0 + 9000, 1.0, 1.0)], alive=T0 + MINUTE, number=3)
    await bench.send([(T0 + 2 * MINUTE, 2.0, 2.0)], alive=T0 + 3 * MINUTE, number=4)
    async with bench.running():
        made = await bench.until(lambda frame: frame.height == 2)
        assert made["complete"].to_list() == [False, True]


async def test_what_the_stream_no_longer_holds_is_not_claimed(bench: Bench) -> None:
    await bench.send([(T0, 1.0, 1.0)], alive=T0 + 1000)
    await bench.bus.js.purge_stream(TICKS)
    await bench.send([(T0 + 9000, 2.0, 2.0)], alive=T0 + MINUTE)
    await bench.send([(T0 + 2 * MINUTE + 9000, 2.0, 2.0)], alive=T0 + 4 * MINUTE)
    async with bench.running():
        made = await bench.until(lambda frame: frame.height == 2)
        assert made["complete"].to_list() == [False, True]


async def test_bars_under_way_whose_ticks_expired_are_left_to_repair(bench: Bench) -> None:
    async with bench.running() as aggregator:
        await bench.send([(T0, 1.0, 1.0)], alive=T0 + 1000)
        await eventually(lambda: aggregator.health().ticks == 1)
    assert (await Checkpoints(bench.bus).load("aggregator.default", BookState)) is not None
    await bench.bus.js.purge_stream(TICKS)
    await bench.send([(T0 + 9000, 2.0, 2.0)], alive=T0 + MINUTE)
    await bench.send([(T0 + 2 * MINUTE, 2.0, 2.0)], alive=T0 + 3 * MINUTE)
    async with bench.running() as aggregator:
        made = await bench.until(lambda frame: frame.height == 1)
        assert made.select("ts", "complete").rows() == [(at(T0 + 2 * MINUTE), True)]
        await eventually(lambda: not aggregator.health().losses_waiting)
    losses = await LossBucket(bench.bus).all()
    assert {loss.start for loss in losses} >= {at(T0)}
    assert {loss.cause for loss in losses} == {"expired", "late"}, "late: what is left of the minute that was given up"


async def test_ticks_that_expire_before_a_slow_aggregator_takes_them_are_lost_and_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full stream lets the oldest go: what this one had not read is not complete, and what it had read stays so."""
    monkeypatch.setattr(service, "FETCH", 1)
    monkeypatch.setattr(tick_reader, "CURRENT_S", 0.0)
    async with bench.running(EUR, GBP) as aggregator:
        await bench.send([(T0, 1.0, 1.0)], alive=T0 + MINUTE)
        await bench.until(lambda frame: frame["complete"].to_list() == [True])
        take = aggregator._book.take  # type: ignore[union-attr]
        held, go_on = threading.Event(), threading.Event()

        def slowly(*arguments: Any) -> None:
            held.set()
            go_on.wait(15)
            take(*arguments)

        aggregator._book.take = slowly  # type: ignore[union-attr, method-assign]
        await bench.send([(T0 + MINUTE, 2.0, 2.0)], alive=T0 + MINUTE + 9000)
        await asyncio.to_thread(held.wait, 15)
        lost = await bench.send([(T0 + MINUTE + 9500, 3.0, 3.0)], alive=T0 + MINUTE + 9999)
        await bench.send([(T0 + MINUTE + 10_000, 4.0, 4.0)], alive=T0 + 2 * MINUTE)
        await bench.bus.js.purge_stream(TICKS, seq=lost + 1)
        await bench.send([(T0 + 3 * MINUTE, 5.0, 5.0)], alive=T0 + 5 * MINUTE)
        go_on.set()
        made = await bench.until(lambda frame: frame.height == 3)
        assert made.select("trades", "complete").rows() == [(1, True), (2, False), (1, True)]
        await eventually(lambda: not aggregator.health().losses_waiting)
    losses = [loss for loss in await LossBucket(bench.bus).all() if loss.symbol == "EURUSD"]
    assert [(loss.start, loss.end, loss.cause) for loss in losses] == [
        (at(T0 + MINUTE + 9000), at(T0 + 2 * MINUTE) + LATE, "expired")
    ]


async def test_a_stream_that_was_made_anew_is_read_from_its_start(bench: Bench) -> None:
    async with bench.running() as aggregator:
        for moment in range(5):
            await bench.send([(T0 + moment, 1.0, 1.0)], alive=T0 + moment)
        await eventually(lambda: aggregator.health().ticks == 5)
    await bench.bus.js.delete_stream(TICKS)
    await bench.bus.ensure_streams(scale=1 / 64)
    await bench.send([(T0 + MINUTE, 2.0, 2.0)], alive=T0 + MINUTE + 5)
    await bench.send([(T0 + 2 * MINUTE + 9000, 2.0, 2.0)], alive=T0 + 4 * MINUTE)
    async with bench.running():
        made = await bench.until(lambda frame: frame.height == 2)
        assert made.select("ts", "complete").rows() == [(at(T0 + MINUTE), False), (at(T0 + 2 * MINUTE), True)]


# ------------------------------------------------------------------------------------------------- trouble


async def test_nats_may_go_away_and_come_back(bench: Bench, server: NatsProcess) -> None:
    rows = some_quotes(100)
    async with bench.running() as aggregator:
        for begin in range(0, 50, 10):
            await bench.send(rows[begin : begin + 10], alive=rows[begin + 9][0])
        await eventually(lambda: aggregator.health().ticks == 50)
        server.restart()
        async with open_bus(server.settings, "test") as bus:
            other = Bench(bus)
            for begin in range(50, 100, 10):
                await other.send(rows[begin : begin + 10], alive=rows[begin + 9][0])
            await other.send(alive=T0 + 3 * MINUTE)
            made = await other.until(lambda frame: frame.height == 3)
        assert made.select(COLUMNS).rows() == expected(rows, "1m")
        assert made["complete"].all()
        await eventually(lambda: aggregator.health().healthy)


async def test_an_outage_of_nats_is_no_silence_of_a_symbol(bench: Bench, server: NatsProcess) -> None:
    """What the collector kept on its disk meanwhile comes a little later: until then nothing is called unproven."""
    async with bench.running(silent_ms=4000) as aggregator:
        await bench.send([(T0, 1.0, 1.0)], alive=T0 + 10)
        await eventually(lambda: aggregator.health().ticks == 1)
        server.kill()
        await asyncio.sleep(4.5)  # longer than what is taken for silence
        server.start()
        async with open_bus(server.settings, "test") as bus:
            other = Bench(bus)
            await eventually(lambda: bench.bus.nc.is_connected and aggregator._reader.at_end)
            await asyncio.sleep(0.5)  # it looks, and finds nothing yet
            await other.send([(T0 + 20_000, 2.0, 2.0)], alive=T0 + MINUTE)
            await other.until(lambda frame: frame.height == 1)
            assert [row.select("complete", "trades").row(0) for row in await other.bars()] == [(True, 2)]


async def test_a_full_stream_of_bars_is_waited_for(bench: Bench) -> None:
    config = (await bench.bus.js.stream_info(LIVE)).config
    await bench.bus.js.update_stream(config.evolve(max_bytes=1024))
    async with bench.running(unhealthy_after_s=1.0) as aggregator:
        await bench.send([(T0, 1.0, 1.0)], alive=T0 + MINUTE)
        await eventually(lambda: aggregator.health().unpublished > 0 and aggregator._said)
        await eventually(lambda: not aggregator.health().healthy)
        stuck = aggregator.health()
        assert stuck.stuck_s > 1.0
        assert [problem for problem in stuck.problems if "of bars wait without progress" in problem]
        await bench.bus.js.update_stream(config)
        await bench.until(lambda frame: frame.height == 1)
        await eventually(lambda: aggregator.health().unpublished == 0)
        await eventually(lambda: aggregator.health().healthy)


def test_waiting_without_progress_is_a_problem() -> None:
    def problems(**facts: Any) -> list[str]:
        usual = {
            "bus_connected": True,
            "lease_held": True,
            "pending": 0,
            "unpublished": 0,
            "stuck_s": 0.0,
            "checkpoint_age_s": 1.0,
            "losses_waiting": 0,
        }
        return problems_of("running", **{**usual, **facts})

    assert problems() == []
    assert problems(pending=9, stuck_s=29.0) == []
    assert "9 batches of ticks" in problems(pending=9, stuck_s=31.0)[0]
    assert problems(lease_held=False) == ["the lease is not held"]
    assert "no checkpoint for 40 s" in problems(checkpoint_age_s=40.0)[0]
    assert problems(bus_connected=False) == ["no connection to NATS"]


async def test_no_instruments_are_refused(bench: Bench) -> None:
    with pytest.raises(SettingsError):
        Aggregator(bench.bus, ())

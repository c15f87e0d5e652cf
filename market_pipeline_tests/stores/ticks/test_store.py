from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import polars as pl
import psycopg
import pytest

from market_pipeline.errors import BadRange, StoreQueryError, StoreUnreachable
from market_pipeline.market.ticks import STORED_TICK_SCHEMA, TICK_SCHEMA
from market_pipeline.settings import PostgresSettings
from market_pipeline.stores.ticks import Outcome, TickBatch, TickLoss, TickReader, TickStore
from market_pipeline.stores.ticks.connection import arguments
from market_pipeline_tests.stores.ticks.frames import (
    START,
    batch,
    batches,
    completed,
    new_symbol,
    quotes,
    real_quotes,
    values,
)

HOUR = timedelta(hours=1)
FAR = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


def admin(database: PostgresSettings) -> psycopg.Connection:
    return psycopg.connect(**arguments(database))


def lines_agree(database: PostgresSettings, symbol: str) -> bool:
    """The batches' lines count the ticks that are stored."""
    with admin(database) as connection:
        lines = connection.execute(
            "SELECT coalesce(sum(rows - superseded), 0)::int FROM tick_batches WHERE symbol = %s", (symbol,)
        ).fetchone()
        ticks = connection.execute("SELECT count(*)::int FROM market_ticks WHERE symbol = %s", (symbol,)).fetchone()
    return lines == ticks


async def test_every_column_comes_back(database: PostgresSettings, reader: TickReader) -> None:
    symbol = "BRK.B é"
    frame = pl.DataFrame(
        [
            (symbol, START, "quote", 1 / 3, 1e-300, None, None, "4", None, START + timedelta(milliseconds=7)),
            (symbol, START, "trade", None, None, -37.63, 0.0, "", "12,37", START),
            (symbol, START + timedelta(milliseconds=1), "trade", None, None, 5e-324, 1e308, None, '"\\N,\n', START),
            (symbol, START + timedelta(milliseconds=2), "quote", 1.0, 0.5, 2.0, None, None, "", START),
        ],
        schema=TICK_SCHEMA,
        orient="row",
    )
    given = batch(frame, batch_id=2**63 - 1)
    async with TickStore(database) as store:
        report = await store.store([given])
    assert (report.counts, report.ticks) == ({Outcome.STORED: 1}, 4)
    found = reader.ticks(symbol, START, START + HOUR)
    assert found.schema == STORED_TICK_SCHEMA
    assert found.rows() == given.frame.rows()
    last = reader.latest([symbol])
    assert last.schema == STORED_TICK_SCHEMA
    assert last.rows() == given.frame.tail(1).rows()
    assert reader.ticks(symbol, START + timedelta(milliseconds=1), START + timedelta(milliseconds=2)).height == 1


async def test_delivered_again_nothing_doubles_and_repeats_stay(database: PostgresSettings, reader: TickReader) -> None:
    symbol = new_symbol()
    same = (3, 1.5, 1.6)
    # ids say nothing about the order
    first = batch(quotes(symbol, same, same, (4, 1.7, 1.8)), batch_id=9002)
    second = batch(quotes(symbol, same, (4, 1.7, 1.8), (9, 1.0, 1.1)), batch_id=9001)
    async with TickStore(database) as store:
        await store.store([first])
        again = await store.store([first, second, first, second])
        third = await store.store([second, first])
    assert [result.outcome for result in again.results] == ["duplicate", "stored", "duplicate", "duplicate"]
    assert again.ticks == 3
    assert third.counts == {Outcome.DUPLICATE: 2}
    found = reader.ticks(symbol, START, START + HOUR)
    # of one ts in the order of arrival: batch by batch
    assert found["ts"].dt.millisecond().to_list() == [3, 3, 3, 4, 4, 9]
    assert (
        found["batch_id"].to_list() == [first.batch_id] * 2 + [second.batch_id, first.batch_id] + [second.batch_id] * 2
    )
    assert lines_agree(database, symbol)


async def test_real_quotes_with_their_exact_repeats(database: PostgresSettings, reader: TickReader) -> None:
    frame = completed(real_quotes(50_000), symbol := new_symbol())
    parts = batches(frame, 256)
    async with TickStore(database) as store:
        for at in range(0, len(parts), 64):
            await store.store(parts[max(0, at - 8) : at + 64])  # the last eight come again
    found = reader.ticks(symbol, *FAR)
    # a stable sort: quotes of one ts keep their order
    assert values(found) == values(frame.sort("ts", maintain_order=True))
    assert found.height - found.select("ts", "bid", "ask").n_unique() == frame.height - frame.n_unique()
    minutes = reader.per_minute(symbol, *FAR)
    assert minutes["quotes"].sum() == frame.height
    assert minutes.height == frame["ts"].dt.truncate("1m").n_unique()


async def test_all_real_exact_repeats_survive_two_writers(database: PostgresSettings, reader: TickReader) -> None:
    """Two workers get the same messages, in chunks that differ; the full file has 12 exact repeats."""
    whole = real_quotes()
    repeated = whole.filter(whole.is_duplicated())["ts"].dt.truncate("1m").unique()
    cut = whole.filter(pl.col("ts").dt.truncate("1m").is_in(repeated.implode()))
    if repeated.is_empty():  # the cut that ships may have none
        cut = pl.concat([whole.head(500), whole.head(500)]).sort("ts", maintain_order=True)
    frame = completed(cut, symbol := new_symbol())
    parts = batches(frame, 40)

    async def work(step: int) -> tuple[int, int]:
        stored = duplicates = 0
        async with TickStore(database) as store:
            for at in range(0, len(parts), step):
                counts = (await store.store(parts[at : at + step])).counts
                stored += counts.get(Outcome.STORED, 0)
                duplicates += counts.get(Outcome.DUPLICATE, 0)
        return stored, duplicates

    results = await asyncio.gather(work(3), work(5), work(1))
    assert sum(stored for stored, _ in results) == len(parts)
    assert sum(duplicates for _, duplicates in results) == 2 * len(parts)
    found = reader.ticks(symbol, *FAR)
    assert sorted(map(repr, values(found))) == sorted(map(repr, values(frame)))
    assert found.height - found.select("ts", "bid", "ask").n_unique() == frame.height - frame.n_unique() >= 12
    assert lines_agree(database, symbol)


async def test_killed_in_the_middle_nothing_is_half_there(database: PostgresSettings, reader: TickReader) -> None:
    symbol, other = new_symbol(), new_symbol()
    old, new = batch(quotes(symbol, (1, 1.0, 1.1)), epoch=7), batch(quotes(other, (2, 1.0, 1.1), (3, 1.2, 1.3)))
    async with TickStore(database) as store:
        await store.store([batch(quotes(symbol, (5, 2.0, 2.1)), epoch=8)])
        with admin(database) as blocker, blocker.transaction():
            # the loss of the fenced batch is written last, when the ticks of the other are copied
            blocker.execute("LOCK TABLE tick_losses IN ACCESS EXCLUSIVE MODE")
            call = asyncio.create_task(store.store([old, new]))
            pid = await asyncio.to_thread(waiting_for_losses, database)
            blocker.execute("SELECT pg_terminate_backend(%s)", (pid,))
            with pytest.raises(StoreUnreachable, match="cannot serve now"):
                await call
        assert reader.ticks(other, START, START + HOUR).is_empty()
        assert lines_agree(database, other)
        assert (await store.losses(symbol, *FAR)).is_empty()
        report = await store.store([old, new])
        assert [result.outcome for result in report.results] == [Outcome.FENCED, Outcome.STORED]
    assert reader.ticks(other, START, START + HOUR).height == 2


def waiting_for_losses(database: PostgresSettings) -> int:
    """Wait until a session waits for the lock, and return its process id."""
    until = datetime.now(UTC) + timedelta(seconds=10)
    with admin(database) as connection:
        while datetime.now(UTC) < until:
            row = connection.execute(
                "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'tick_losses'::regclass"
            ).fetchone()
            if row:
                return int(row[0])
    raise AssertionError("no session waits")


async def test_a_cancelled_call_leaves_nothing_and_the_store_usable(
    database: PostgresSettings, reader: TickReader
) -> None:
    symbol = new_symbol()
    given = batch(quotes(symbol, (1, 1.0, 1.1)))
    async with TickStore(database) as store:
        with admin(database) as blocker, blocker.transaction():
            blocker.execute("LOCK TABLE tick_batches IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await store.store([given])
        assert reader.ticks(symbol, START, START + HOUR).is_empty()
        assert (await store.store([given])).counts == {Outcome.STORED: 1}
    assert reader.ticks(symbol, START, START + HOUR).height == 1


async def test_a_bad_batch_is_rejected_alone(database: PostgresSettings, reader: TickReader) -> None:
    symbol = new_symbol()
    good = batch(quotes(symbol, (1, 1.0, 1.1)))
    nan = batch(quotes(symbol, (2, float("nan"), 1.1)))
    foreign = TickBatch(good.batch_id + 1, "OTHER", 1, good.frame)
    future = batch(quotes(symbol, (1, 1.0, 1.1), start=datetime.now(UTC) + timedelta(days=2)))
    shifted = TickBatch(9, symbol, 1, good.frame.with_columns(batch_id=pl.lit(9, pl.UInt64), n=pl.lit(4, pl.UInt32)))
    lacking = TickBatch(10, symbol, 1, good.frame.drop("ask"))
    many = batch(
        completed(
            pl.DataFrame({"ts": [START + timedelta(days=n) for n in range(40)], "bid": 1.0, "ask": 1.0}).with_columns(
                pl.col("ts").dt.cast_time_unit("ms")
            ),
            symbol,
        )
    )
    heartbeat = TickBatch(11, symbol, 1, good.frame.clear())
    async with TickStore(database) as store:
        report = await store.store([nan, foreign, good, future, shifted, lacking, many, heartbeat])
    assert [result.outcome for result in report.results] == [
        *("rejected", "rejected", "stored", "rejected", "rejected", "rejected", "rejected", "empty"),
    ]
    reasons = [result.detail for result in report.of(Outcome.REJECTED)]
    for reason, said in zip(
        reasons, ("bid: not a finite", "rows are not", "cannot be", "place", "columns", "31 days"), strict=True
    ):
        assert said in reason
    assert reader.ticks(symbol, *FAR).height == 1


async def test_losses_grow_and_are_found_by_what_they_touch(database: PostgresSettings, reader: TickReader) -> None:
    symbol = new_symbol()
    minute = timedelta(minutes=1)
    async with TickStore(database) as store:
        await store.record_losses([])
        await store.record_losses(
            [
                TickLoss(symbol, START, START + minute, "silence", "s1", "a"),
                TickLoss(symbol, START + 5 * minute, START + 6 * minute, "overflow", "s1", "a"),
            ]
        )
        await store.record_losses([TickLoss(symbol, START, START + 3 * minute, "silence", "s1", "a")] * 2)
        with pytest.raises(ValueError, match="before its start"):
            await store.record_losses([TickLoss(symbol, START, START, "silence")])
        found = await store.losses(symbol, START + 2 * minute, START + 5 * minute)
    assert found.select("start", "end", "cause").rows() == [(START, START + 3 * minute, "silence")]
    assert reader.losses(symbol, *FAR)["cause"].to_list() == ["silence", "overflow"]
    assert reader.losses(symbol, START + 3 * minute, START + 5 * minute).is_empty()


async def test_only_days_that_cannot_come_again_are_dropped(database: PostgresSettings, reader: TickReader) -> None:
    symbol = new_symbol()
    now = datetime.now(UTC)
    old, kept = (batch(quotes(symbol, (0, 1.0, 1.1), start=now - timedelta(days=n))) for n in (9, 2))
    async with TickStore(database) as store, TickStore(database) as other:
        await other.store([old, kept])
        with pytest.raises(BadRange, match="last 3 days"):
            await store.drop_older_than(2)
        assert not await store.set_retention(30)  # partitions have no policy: a job calls drop_older_than
        dropped = await store.drop_older_than(3)
        assert dropped.days >= 1
        assert dropped.batches >= 1
        assert (await store.drop_older_than(3)).days == 0
        assert reader.ticks(symbol, *FAR).height == 1
        # the other store still believes in the partition that is gone
        assert (await other.store([old])).counts == {Outcome.STORED: 1}
    assert reader.ticks(symbol, *FAR).height == 2


async def test_the_store_goes_on_after_its_session_was_ended(database: PostgresSettings) -> None:
    async with TickStore(database) as store:
        with admin(database) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
                (database.database,),
            )
        with pytest.raises(StoreUnreachable):
            await store.probe()
        assert await store.probe() > 0


async def test_a_reader_of_a_database_without_ticks_says_so(database: PostgresSettings) -> None:
    with (
        TickReader(database.model_copy(update={"database": "postgres"})) as reader,
        pytest.raises(StoreQueryError, match="has not been started in database 'postgres'"),
    ):
        reader.latest()

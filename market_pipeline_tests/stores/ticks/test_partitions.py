from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql

from market_pipeline.settings import PostgresSettings
from market_pipeline.stores.ticks import Layout, Outcome, TickReader, TickStore
from market_pipeline.stores.ticks.connection import arguments
from market_pipeline.stores.ticks.copy_format import COLUMNS, encode_rows
from market_pipeline_tests.stores.ticks.conftest import MakeDatabase
from market_pipeline_tests.stores.ticks.frames import batch, new_symbol, quotes

MIDNIGHT = datetime(2023, 10, 29, tzinfo=UTC)  # a change of the clocks in Europe: our days don't know it
MILLISECOND = timedelta(milliseconds=1)


def rows_of(database: PostgresSettings, table: str) -> int:
    with psycopg.connect(**arguments(database)) as connection:
        row = connection.execute(sql.SQL("SELECT count(*)::int FROM {}").format(sql.Identifier(table))).fetchone()
    assert row is not None
    return int(row[0])


async def test_the_boundary_of_a_day(database: PostgresSettings, reader: TickReader) -> None:
    symbol = new_symbol()
    across = batch(
        quotes(symbol, (-1, 1.0, 1.1), (0, 1.2, 1.3), (86_399_999, 1.4, 1.5), (86_400_000, 1.6, 1.7), start=MIDNIGHT)
    )
    async with TickStore(database) as store:
        assert store.layout is Layout.PARTITIONS
        await store.store([across])
    days = [rows_of(database, f"market_ticks_202310{day}") for day in (28, 29, 30)]
    assert days == [1, 2, 1]
    day = timedelta(days=1)
    assert reader.ticks(symbol, MIDNIGHT, MIDNIGHT + day)["bid"].to_list() == [1.2, 1.4]
    assert reader.ticks(symbol, MIDNIGHT - MILLISECOND, MIDNIGHT)["bid"].to_list() == [1.0]


async def test_partitions_are_there_ahead_and_none_takes_what_has_no_day(database: PostgresSettings) -> None:
    async with TickStore(database):
        pass
    for ahead in range(3):
        assert rows_of(database, f"market_ticks_{datetime.now(UTC) + timedelta(days=ahead):%Y%m%d}") == 0
    lost = encode_rows(batch(quotes("X", (0, 1.0, 1.1), start=datetime(1999, 1, 4, tzinfo=UTC))).frame)
    statement = sql.SQL("COPY market_ticks ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    )
    with (
        psycopg.connect(**arguments(database)) as connection,
        pytest.raises(psycopg.errors.CheckViolation, match="no partition"),
        connection.cursor().copy(statement) as copy,
    ):
        copy.write(lost)


async def test_many_processes_start_and_create_days_at_once(make_database: MakeDatabase) -> None:
    database = make_database()
    stores = [TickStore(database) for _ in range(6)]
    await asyncio.gather(*(store.start() for store in stores))
    given = [
        batch(quotes(f"S{n}", (0, 1.0, 1.1), start=MIDNIGHT + timedelta(days=day)))
        for n in range(6)
        for day in range(4)
    ]
    reports = await asyncio.gather(*(store.store(given) for store in stores))
    assert sum(report.counts.get(Outcome.STORED, 0) for report in reports) == len(given)
    await asyncio.gather(*(store.close() for store in stores))
    with TickReader(database) as reader:
        assert reader.latest()["symbol"].to_list() == [f"S{n}" for n in range(6)]
    assert rows_of(database, "tick_schema_migrations") == 1


async def test_dropping_does_not_stop_a_writer(make_database: MakeDatabase) -> None:
    """Days are dropped while a transaction of another writer is open; a drop cut short is finished by the next."""
    database = make_database()
    old = datetime.now(UTC) - timedelta(days=20)
    async with TickStore(database) as store:
        await store.store([batch(quotes("A", (0, 1.0, 1.1), start=old + timedelta(days=n))) for n in range(3)])
        with psycopg.connect(**arguments(database)) as holder, holder.transaction():
            holder.execute("SELECT count(*) FROM market_ticks")  # so no partition can go yet
            drop = asyncio.create_task(store.drop_older_than(3))
            await asyncio.sleep(0.3)
            report = await asyncio.wait_for(store.store([batch(quotes("A", (0, 2.0, 2.1)))]), 10)
            assert report.counts == {Outcome.STORED: 1}
            assert not drop.done()
            drop.cancel()
            with pytest.raises(asyncio.CancelledError):
                await drop
        # the tick just stored is of a past day as well
        assert (await store.drop_older_than(3)).days == 4
    assert rows_of(database, "market_ticks") == 0
    assert rows_of(database, "tick_batches") == 0

"""The schema and its two layouts.

TimescaleDB itself is not in the wheel of the server. So its statements are checked as text, and the store is run over
the hypertable's layout with TimescaleDB's functions replaced by ones that do nothing: then market_ticks is one plain
table, which is what a hypertable is to every other statement of ours.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from structlog.testing import capture_logs

from market_pipeline.errors import StoreQueryError
from market_pipeline.settings import PostgresSettings
from market_pipeline.stores.ticks import Layout, Outcome, TickReader, TickStore, migrations
from market_pipeline.stores.ticks.connection import arguments
from market_pipeline.stores.ticks.migrations import TimescaleState, render
from market_pipeline_tests.stores.ticks.conftest import MakeDatabase
from market_pipeline_tests.stores.ticks.frames import START, batch, quotes

FAKE_TIMESCALEDB = """
SET check_function_bodies = off;
CREATE FUNCTION by_range(name, interval) RETURNS text LANGUAGE sql AS 'SELECT $1 || '' '' || $2';
CREATE FUNCTION create_hypertable(regclass, text, create_default_indexes boolean) RETURNS text LANGUAGE sql
AS 'SELECT $2';
CREATE FUNCTION drop_chunks(regclass, older_than timestamptz) RETURNS SETOF text LANGUAGE sql
AS 'DELETE FROM market_ticks WHERE ts < older_than; SELECT ''chunk''';
CREATE TABLE policies (days interval);
CREATE FUNCTION remove_retention_policy(regclass, if_exists boolean) RETURNS void LANGUAGE sql
AS 'DELETE FROM policies';
CREATE FUNCTION add_retention_policy(regclass, interval) RETURNS void LANGUAGE sql
AS 'INSERT INTO policies VALUES ($2)';
"""


def test_only_the_layout_differs() -> None:
    partitions, hypertable = render(Layout.PARTITIONS), render(Layout.HYPERTABLE)
    assert [migration.name for migration in partitions] == ["ticks"]
    assert [migration.name for migration in hypertable] == ["ticks", "hypertable", "compression"]
    assert partitions[0].statements.count("PARTITION BY RANGE (ts)") == 1
    assert "PARTITION BY" not in hypertable[0].statements
    assert not any("@" in migration.statements for migration in (*partitions, *hypertable))
    assert partitions[0].checksum == hypertable[0].checksum
    assert "create_hypertable('market_ticks', by_range('ts', INTERVAL '1 day')" in hypertable[1].statements
    assert "segmentby = 'symbol'" in hypertable[2].statements
    assert "add_columnstore_policy('market_ticks', after => INTERVAL '3 days'" in hypertable[2].statements


async def test_without_the_extension_days_are_partitions(make_database: MakeDatabase) -> None:
    database = make_database()
    state = await migrations._detect(database)
    if state.available:
        pytest.skip("this server has TimescaleDB: the hypertable is what is used")
    assert await migrations.apply(database) is Layout.PARTITIONS
    assert (await migrations._detect(database)).standing is Layout.PARTITIONS
    assert await migrations.apply(database) is Layout.PARTITIONS


async def test_an_extension_that_cannot_be_created_is_said_and_done_without(make_database: MakeDatabase) -> None:
    database = make_database()
    if (await migrations._detect(database)).available:
        pytest.skip("this server has TimescaleDB: creating it does not fail")
    with capture_logs() as logs:
        layout = await migrations._choose(database, TimescaleState(available=True, installed=False, relkind=None))
    assert layout is Layout.PARTITIONS
    [warning] = logs
    assert warning["event"] == "timescaledb_not_used"
    assert "timescaledb" in warning["reason"]


async def test_the_store_over_the_hypertables_layout(
    make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database()
    with psycopg.connect(**arguments(database)) as connection:
        connection.execute(FAKE_TIMESCALEDB)

    async def detect(settings: PostgresSettings) -> TimescaleState:
        return TimescaleState(available=True, installed=True, relkind=None)

    monkeypatch.setattr(migrations, "_detect", detect)
    with capture_logs() as logs:
        store = TickStore(database)
        await store.start()
    # this server does not know TimescaleDB's parameters, as another version may not know these names
    assert ["ticks are not compressed" in log["message"] for log in logs if log["log_level"] == "warning"] == [True]
    now = datetime.now(UTC)
    old, new = (batch(quotes("A", (0, 1.0, 1.1), start=now - timedelta(days=n))) for n in (30, 1))
    async with store:
        assert store.layout is Layout.HYPERTABLE
        assert (await store.store([old, new, old])).counts == {Outcome.STORED: 2, Outcome.DUPLICATE: 1}
        assert await store.set_retention(30)
        assert await store.set_retention(90)
        dropped = await store.drop_older_than(10)
        assert (dropped.days, dropped.batches) == (1, 1)
    with TickReader(database) as reader:
        assert reader.ticks("A", START - timedelta(days=9999), now).height == 1
    with psycopg.connect(**arguments(database)) as connection:
        assert connection.execute("SELECT days FROM policies").fetchall() == [(timedelta(days=90),)]
    monkeypatch.undo()
    assert await migrations.apply(database) is Layout.HYPERTABLE  # a table that stands keeps its layout


async def test_a_migration_that_was_changed_is_refused(make_database: MakeDatabase) -> None:
    database = make_database()
    await migrations.apply(database)
    with psycopg.connect(**arguments(database)) as connection:
        connection.execute("UPDATE tick_schema_migrations SET checksum = 'other'")
    with pytest.raises(StoreQueryError, match="001_ticks of the tick store was changed"):
        await migrations.apply(database)

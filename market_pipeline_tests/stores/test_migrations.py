"""The schema: once, again, at once, and for a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from market_pipeline.errors import StoreQueryError
from market_pipeline.local.clickhouse.process import ServerProcess
from market_pipeline.stores import migrations
from market_pipeline.stores.clickhouse import Client, connect
from market_pipeline.stores.gap_ledger import GapLedger
from market_pipeline_tests.servers import new_database

NAMES = [
    "bars",
    "bar_views",
    "ingest_batches",
    "vendor_requests",
    "gaps",
    "bars_1s",
    "external",
    "bar_revisions",
    "underived",
    "gap_failures",
]


@pytest.fixture
def fresh(server: ServerProcess) -> Iterator[Client]:
    client = connect(new_database(server))
    yield client
    client.command("DROP DATABASE IF EXISTS {name:Identifier}", {"name": client.database}, in_database=False)
    client.close()


def relations(client: Client) -> list[str]:
    return [
        name
        for (name,) in client.rows("SELECT name FROM system.tables WHERE database = currentDatabase() ORDER BY name")
    ]


def test_apply_twice(fresh: Client) -> None:
    assert migrations.apply(fresh) == NAMES
    assert migrations.apply(fresh) == []
    assert relations(fresh) == sorted(
        [
            "bars",
            "bars_ranked",
            "bars_final",
            "bar_digests",
            "bars_1s",
            "bars_1s_ranked",
            "bars_1s_final",
            "bar_1s_digests",
            "bar_revisions",
            "bar_revisions_ranked",
            "bar_changes",
            "ingest_batches",
            "vendor_requests",
            "gaps",
            "external_observations",
            "external_final",
            "schema_migrations",
            "underived",
        ]
    )


def test_several_at_once(fresh: Client) -> None:
    def one(_: int) -> list[str]:
        client = connect(fresh.settings)
        try:
            return migrations.apply(client)
        finally:
            client.close()

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(one, range(6)))
    assert set().union(*done) == set(NAMES)
    assert migrations.apply(fresh) == []
    assert fresh.rows("SELECT count() AS n FROM schema_migrations FINAL") == [(len(NAMES),)]


def test_gaps_of_before_their_failures_were_counted_have_none(fresh: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [each for each in migrations.render() if each.name != "gap_failures"]
    with monkeypatch.context() as older:
        older.setattr(migrations, "render", lambda cluster=None: before)
        migrations.apply(fresh)
    day = "2024-03-04 00:00:00"
    fresh.command(
        "INSERT INTO gaps (symbol, start_ts, end_ts, minutes, cause, state, attempts, first_seen, note, version, "
        f"is_deleted) VALUES ('EURUSD', '{day}', '2024-03-04 00:01:00', 1, 'lost', 'open', 1, '{day}', '', 1, 0)"
    )
    assert migrations.apply(fresh) == ["gap_failures"]
    table = GapLedger(fresh).table()
    assert table.select("symbol", "state", "attempts", "failures").rows() == [("EURUSD", "open", 1, 0)]


def test_a_changed_migration_is_refused(fresh: Client) -> None:
    migrations.apply(fresh)
    fresh.command("INSERT INTO schema_migrations (version, name, checksum) VALUES (1, 'bars', 'of another file')")
    with pytest.raises(StoreQueryError, match="001_bars was changed after it was applied"):
        migrations.apply(fresh)


def test_a_database_of_a_newer_program_is_left_alone(fresh: Client) -> None:
    migrations.apply(fresh)
    fresh.command("INSERT INTO schema_migrations (version, name, checksum) VALUES (999, 'later', 'x')")
    assert migrations.apply(fresh) == []


def test_a_broken_migration_is_named(fresh: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = migrations.Migration(1, "bars", ("CREATE TABLE IF NOT EXISTS broken (x NoSuchType) ENGINE = Memory",), "c")
    monkeypatch.setattr(migrations, "render", lambda cluster=None: [broken])
    with pytest.raises(StoreQueryError, match="001_bars failed"):
        migrations.apply(fresh)


def test_every_statement_can_be_repeated() -> None:
    for migration in [*migrations.render(), *migrations.render("c")]:
        for statement in migration.statements:
            assert "IF NOT EXISTS" in statement, statement
            assert "@" not in statement, statement


def test_the_cluster_s_schema_parses_and_is_replicated(fresh: Client) -> None:
    single, cluster = migrations.render(), migrations.render("prod")
    assert [m.checksum for m in single] == [m.checksum for m in cluster]
    statements = [statement for migration in cluster for statement in migration.statements]
    migrations.apply(fresh)
    for statement in statements:
        fresh.rows("SELECT formatQuery({q:String}) AS q", {"q": statement})
        assert "ON CLUSTER 'prod'" in statement
    tables = [s for s in statements if s.startswith("CREATE TABLE") and "Distributed(" not in s]
    assert all("ENGINE = Replicated" in s and "_local ON CLUSTER" in s for s in tables)
    assert sum("ENGINE = Distributed('prod'" in s for s in statements) == len(tables) == 8
    engine = "ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}', revision, "
    assert any(f"{engine}is_deleted)" in s for s in tables)


def test_a_cluster_s_name_cannot_smuggle_sql() -> None:
    with pytest.raises(ValueError, match="no name of a cluster"):
        migrations.render("x' ; DROP")

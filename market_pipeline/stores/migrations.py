"""The schema of the database: numbered files in schema/, each applied once and recorded with its checksum.

The files are plain ClickHouse DDL with four marks, so that one source serves a single server and a cluster:

    @table(t)               t; on a cluster `t_local ON CLUSTER c`
    @view(v)                v; on a cluster `v ON CLUSTER c`
    @engine(E, args)        E(args); on a cluster ReplicatedE with the keeper path of its shard
    @distributed(t, key)    nothing; on a cluster the Distributed table t over t_local, sharded by key

ClickHouse has no lock to take, so every statement of a migration must do nothing when it is repeated
(`IF NOT EXISTS`): several processes may then apply the same migration at once.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from importlib import resources

import polars as pl
import structlog

from market_pipeline.errors import StoreQueryError
from market_pipeline.stores.clickhouse import Client, create_database
from market_pipeline.stores.sql_files import load_sql

log = structlog.get_logger(__name__)

_FILE = re.compile(r"(\d{3})_([a-z0-9_]+)\.sql")
_CLUSTER_NAME = re.compile(r"[A-Za-z0-9_\-]+")
# Another process made the same thing between the server's look and its deed.
_RACE_CODES = frozenset({57, 60, 82, 253, 342, 506, 517})
_RACE_PATIENCE_S = 5.0
_KEEPER_PATH = "/clickhouse/tables/{shard}/{database}/{table}"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of schema/: number, name, the statements to execute, and the SHA-256 of the file's text."""

    version: int
    name: str
    statements: tuple[str, ...]
    checksum: str


def render(cluster: str | None = None) -> list[Migration]:
    """Return the migrations in order, for a single server or for the named cluster of `remote_servers`.

    On a cluster the servers' macros must define `shard` and `replica`.
    """
    if cluster is not None and not _CLUSTER_NAME.fullmatch(cluster):
        raise ValueError(f"{cluster!r} is no name of a cluster")
    files = sorted(
        (each for each in resources.files(__package__).joinpath("schema").iterdir() if _FILE.fullmatch(each.name)),
        key=lambda each: each.name,
    )
    migrations = []
    for file in files:
        number, name = _FILE.fullmatch(file.name).groups()  # type: ignore[union-attr]
        text = file.read_text(encoding="utf-8")
        checksum = hashlib.sha256(text.encode()).hexdigest()
        migrations.append(Migration(int(number), name, tuple(_statements(text, cluster)), checksum))
    return migrations


def apply(client: Client, *, cluster: str | None = None) -> list[str]:
    """Create the client's database and bring its schema up to date; return the names of the migrations applied.

    Does nothing when all are applied. Safe when several processes do it at once.

    Raises:
        StoreQueryError: a migration that is already applied has been changed since, or the server refuses one.
        StoreUnreachable, StoreAuthError: as every use of the client.
    """
    migrations = render(cluster)
    applied = _applied(client)
    if applied is None:
        create_database(client)
        client.command(load_sql("schema_migrations_table"))
        applied = _applied(client) or {}
    _check_unchanged(migrations, applied)
    done = []
    for migration in migrations:
        if migration.version in applied:
            continue
        for statement in migration.statements:
            execute(client, statement, what=f"the migration {migration.version:03d}_{migration.name}")
        _record(client, migration)
        done.append(migration.name)
        log.info("migration_applied", version=migration.version, name=migration.name, database=client.database)
    return done


def _applied(client: Client) -> dict[int, tuple[str, str]] | None:
    """Return version -> (name, checksum), or None where nothing was ever applied."""
    try:
        if client.rows(load_sql("schema_migrations_exists")) == [(0,)]:
            return None
        return {
            version: (name, checksum) for version, name, checksum in client.rows(load_sql("schema_migrations_applied"))
        }
    except StoreQueryError as error:
        if error.code == 81:  # no such database
            return None
        raise


def _check_unchanged(migrations: list[Migration], applied: dict[int, tuple[str, str]]) -> None:
    known = {migration.version: migration for migration in migrations}
    for version, (name, checksum) in applied.items():
        migration = known.get(version)
        if migration is None:
            log.warning("migration_unknown", version=version, name=name, hint="a newer program has been here")
        elif migration.checksum != checksum:
            raise StoreQueryError(
                f"the migration {version:03d}_{migration.name} was changed after it was applied: "
                "restore the file and put the change into a migration of its own"
            )


def execute(client: Client, statement: str, *, what: str) -> None:
    """Execute a statement of DDL that another process may be executing too; `what` begins the error's sentence.

    Raises:
        StoreQueryError: the server refuses it, for longer than a race lasts.
    """
    until = time.monotonic() + _RACE_PATIENCE_S
    while True:
        try:
            client.command(statement)
            return
        except StoreQueryError as error:
            if error.code not in _RACE_CODES or time.monotonic() > until:
                raise StoreQueryError(f"{what} failed: {error}", code=error.code) from error
            time.sleep(0.1)


def _record(client: Client, migration: Migration) -> None:
    client.insert_frame(
        "schema_migrations",
        pl.DataFrame(
            {"version": [migration.version], "name": [migration.name], "checksum": [migration.checksum]},
            schema={"version": pl.UInt32, "name": pl.String, "checksum": pl.String},
        ),
    )


def _statements(text: str, cluster: str | None) -> list[str]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    parts = re.split(r";[ \t]*(?:\n|$)", "\n".join(lines))
    rendered = [render_statement(part.strip(), cluster) for part in parts]
    return [statement for statement in rendered if statement]


def render_statement(statement: str, cluster: str | None) -> str:
    """Return a statement with its marks filled in, for a single server or for the named cluster; "" for none."""
    on = f" ON CLUSTER '{cluster}'" if cluster else ""
    local = "_local" if cluster else ""
    distributed = re.fullmatch(r"@distributed\((\w+), (.+)\)", statement)
    if distributed:
        if not cluster:
            return ""
        table, key = distributed.groups()
        return (
            f"CREATE TABLE IF NOT EXISTS {table}{on} AS {table}_local\n"
            f"ENGINE = Distributed('{cluster}', currentDatabase(), '{table}_local', {key})"
        )
    statement = re.sub(r"@table\((\w+)\)", rf"\1{local}{on}", statement)
    statement = re.sub(r"@view\((\w+)\)", rf"\1{on}", statement)
    return re.sub(
        r"@engine\((\w+)(?:, ([^)]*))?\)", lambda found: _engine(found[1], found[2] or "", cluster), statement
    )


def _engine(name: str, arguments: str, cluster: str | None) -> str:
    if not cluster:
        return f"{name}({arguments})"
    replicated = [f"'{_KEEPER_PATH}'", "'{replica}'", *([arguments] if arguments else [])]
    return f"Replicated{name}({', '.join(replicated)})"

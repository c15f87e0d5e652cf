"""The schema of the tick store: numbered files in schema/, each applied once and recorded with its checksum.

`NNN_name.sql` is for every server, `NNN_name.timescaledb.sql` only where market_ticks is a hypertable. `@by_day` makes
the table one of daily partitions where it is not. Changes of tables are part of transactions in PostgreSQL and one lock
guards them, so any number of processes may apply them at once.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import LiteralString

import psycopg
import structlog

from market_pipeline.errors import StoreQueryError
from market_pipeline.settings import PostgresSettings
from market_pipeline.stores.ticks.connection import AsyncConnection, connect, errors, rows
from market_pipeline.stores.ticks.sql_files import load_sql

log = structlog.get_logger(__name__)

_FILE = re.compile(r"(\d{3})_([a-z0-9_]+?)(\.timescaledb)?\.sql")


class Layout(StrEnum):
    """How market_ticks is cut by time."""

    HYPERTABLE = "hypertable"
    PARTITIONS = "partitions"


@dataclass(frozen=True, slots=True)
class TimescaleState:
    """What the server has: the extension's files, the extension in this database, and market_ticks (its relkind)."""

    available: bool
    installed: bool
    relkind: str | None

    @property
    def standing(self) -> Layout | None:
        """The layout of the table that is there, which stays as it is; None where there is no table yet."""
        if self.relkind is None:
            return None
        return Layout.PARTITIONS if self.relkind == "p" else Layout.HYPERTABLE


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of schema/: number, name, its statements for the layout, and the SHA-256 of the file's text."""

    version: int
    name: str
    statements: LiteralString
    checksum: str


def render(layout: Layout) -> list[Migration]:
    """Return the migrations of a layout in order."""
    found = []
    for file in resources.files(__package__).joinpath("schema").iterdir():
        name = _FILE.fullmatch(file.name)
        if name is None or (name[3] and layout is not Layout.HYPERTABLE):
            continue
        text = file.read_text(encoding="utf-8")
        by_day = "PARTITION BY RANGE (ts)" if layout is Layout.PARTITIONS else ""
        statements = text.replace("@by_day", by_day)
        found.append(Migration(int(name[1]), name[2], statements, hashlib.sha256(text.encode()).hexdigest()))
    return sorted(found, key=lambda migration: migration.version)


async def apply(settings: PostgresSettings) -> Layout:
    """Bring the tick store's schema up to date and return its layout.

    The first time, TimescaleDB is used if the server has it and lets the user create the extension; daily partitions
    otherwise. A table that stands keeps its layout. Safe when several processes do it at once.

    Raises:
        StoreQueryError: a migration that is applied has been changed since, or the server refuses one.
        StoreUnreachable, StoreAuthError: as every use of the server.
    """
    with errors(settings):
        state = await _detect(settings)
        layout = state.standing or await _choose(settings, state)
        async with await connect(settings) as connection, connection.transaction():
            connection.add_notice_handler(_log_warning)
            await connection.execute(load_sql("schema_lock"))
            # another process may have been first, and have chosen otherwise
            layout = (await _state(connection)).standing or layout
            await _apply(connection, render(layout))
    return layout


async def _detect(settings: PostgresSettings) -> TimescaleState:
    async with await connect(settings) as connection:
        return await _state(connection)


async def _state(connection: AsyncConnection) -> TimescaleState:
    return TimescaleState(*(await rows(connection, "timescaledb_state"))[0])


async def _choose(settings: PostgresSettings, state: TimescaleState) -> Layout:
    if state.installed:
        return Layout.HYPERTABLE
    if not state.available:
        return Layout.PARTITIONS
    # in a session of its own: the extension must be the first thing of it
    async with await connect(settings) as connection:
        try:
            await connection.execute(load_sql("timescaledb_create"))
        except psycopg.DatabaseError as error:
            reason = str(error).partition("\n")[0]
            if connection.closed and "preloaded" not in reason:  # which the extension itself ends the session for
                raise
        else:
            return Layout.HYPERTABLE
    if (await _detect(settings)).installed:  # by another process, at the same moment
        return Layout.HYPERTABLE
    log.warning(
        "timescaledb_not_used",
        reason=reason,
        instead="daily partitions",
        hint="put timescaledb into shared_preload_libraries and let the database's owner create the extension",
    )
    return Layout.PARTITIONS


async def _apply(connection: AsyncConnection, migrations: list[Migration]) -> None:
    await connection.execute(load_sql("schema_migrations_table"))
    lines = await rows(connection, "schema_migrations_applied")
    applied = {version: checksum for version, _, checksum in lines}
    known = {migration.version for migration in migrations}
    for version, name, _ in lines:
        if version not in known:
            log.warning("tick_migration_unknown", version=version, name=name, hint="a newer program has been here")
    for migration in migrations:
        title = f"{migration.version:03d}_{migration.name}"
        if migration.version in applied:
            if applied[migration.version] != migration.checksum:
                raise StoreQueryError(
                    f"the migration {title} of the tick store was changed after it was applied: "
                    "restore the file and put the change into a migration of its own"
                )
            continue
        await connection.execute(migration.statements)
        await connection.execute(
            load_sql("schema_migrations_record"),
            {"version": migration.version, "name": migration.name, "checksum": migration.checksum},
        )
        log.info("tick_migration_applied", version=migration.version, name=migration.name)


def _log_warning(notice: psycopg.errors.Diagnostic) -> None:
    if notice.severity_nonlocalized == "WARNING":
        log.warning("tick_migration_warning", message=notice.message_primary)

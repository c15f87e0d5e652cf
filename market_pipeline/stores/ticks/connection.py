"""Connections to PostgreSQL, and its failures as our errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg

from market_pipeline.errors import StoreAuthError, StoreError, StoreQueryError, StoreUnreachable
from market_pipeline.settings import PostgresSettings
from market_pipeline.stores.ticks.sql_files import load_sql

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 120
_NAME = "market_pipeline ticks"

AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]

# https://www.postgresql.org/docs/current/errcodes-appendix.html; classes first.
_TRANSIENT_CLASSES: dict[str, str] = {
    "08": "the connection broke",
    "40": "another transaction was in the way",
    "53": "it is short of resources",
    "57": "it is starting, stopping or took too long",
    "58": "its disk failed",
}
_TRANSIENT_CODES: dict[str, str] = {
    "25006": "it is read-only",
    "53100": "its disk is full",
    "53200": "it is out of memory",
    "53300": "too many connections",
    "55P03": "a lock was not to be had",
    "57014": "the statement took too long",
    "57P01": "it is stopping, or the session was ended",
    "57P03": "it is starting or stopping",
}
_AUTH_MARKS = ("password authentication failed", "no password supplied", "role ", "no pg_hba.conf entry")
_AUTH_CLASS = "28"
# Texts of a refused connection, which come without a code.
_CAUSES: tuple[tuple[str, str], ...] = (
    ("starting up", "it is starting"),
    ("shutting down", "it is stopping"),
    ("in recovery mode", "it recovers from a crash"),
    ("too many clients", "too many connections"),
    ("remaining connection slots", "too many connections"),
    ("refused", "connection refused"),
    ("no such file", "no socket there"),
    ("could not translate host", "unknown host"),
    ("name or service", "unknown host"),
    ("resolve", "unknown host"),
    ("timeout", "timed out"),
    ("timed out", "timed out"),
    ("ssl", "no TLS: check postgres.sslmode"),
)


def arguments(settings: PostgresSettings, statement_timeout_s: int = STATEMENT_TIMEOUT_S) -> dict[str, Any]:
    """Return what psycopg needs to connect: bounded waits, UTC, and a session that notices a dead peer."""
    return {
        "host": settings.host,
        "port": settings.port,
        "user": settings.user,
        "password": settings.password.get_secret_value(),
        "dbname": settings.database,
        "sslmode": settings.sslmode,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "application_name": _NAME,
        "options": f"-c timezone=UTC -c statement_timeout={statement_timeout_s * 1000}",
        "autocommit": True,
    }


async def connect(settings: PostgresSettings, *, statement_timeout_s: int = STATEMENT_TIMEOUT_S) -> AsyncConnection:
    """Connect for asyncio; a statement_timeout_s of 0 lets statements take as long as they need.

    Raises:
        StoreUnreachable: nothing answers at host:port, or it is starting or stopping.
        StoreAuthError: user or password are refused.
        StoreQueryError: there is no such database.
    """
    with errors(settings):
        return await psycopg.AsyncConnection.connect(**arguments(settings, statement_timeout_s))


def connect_blocking(settings: PostgresSettings) -> psycopg.Connection[tuple[Any, ...]]:
    """Connect without asyncio; raises as `connect`."""
    with errors(settings):
        return psycopg.connect(**arguments(settings))


async def rows(
    connection: AsyncConnection, statement: str, values: Mapping[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    """Return the rows of the statement in `sql/<statement>.sql`."""
    return await (await connection.execute(load_sql(statement), values)).fetchall()


@contextmanager
def errors(settings: PostgresSettings) -> Iterator[None]:
    """Turn the driver's errors into StoreUnreachable, StoreAuthError and StoreQueryError."""
    try:
        yield
    except (psycopg.Error, OSError, UnicodeEncodeError) as error:
        raise translate(error, settings) from error


def translate(error: Exception, settings: PostgresSettings) -> StoreError:
    """Return our error for one of the driver's: one sentence that names host:port and what to mend, no password."""
    where = f"PostgreSQL at {settings.host}:{settings.port}"
    code = getattr(error, "sqlstate", None)
    text = _sentence(error, settings.password.get_secret_value())
    if code is None and isinstance(error, psycopg.OperationalError | OSError):
        return _of_connection(text, where, settings)
    if code is not None and code.startswith(_AUTH_CLASS):
        return _refused(where, settings)
    if code is not None and (said := _TRANSIENT_CODES.get(code) or _TRANSIENT_CLASSES.get(code[:2])):
        return StoreUnreachable(f"{where} cannot serve now, {said}: {text}")
    if code == "42501":  # insufficient privilege
        return StoreAuthError(f"{where} does not let user {settings.user!r} do this ({text}): mend postgres.user")
    return StoreQueryError(f"{where} refuses the statement{f' ({code})' if code else ''}: {text}")


def _of_connection(text: str, where: str, settings: PostgresSettings) -> StoreError:
    lowered = text.lower()
    if "database" in lowered and "does not exist" in lowered:
        return StoreQueryError(
            f"{where} has no database {settings.database!r}: create it, or mend postgres.database "
            "(MARKET_PIPELINE_POSTGRES__DATABASE)"
        )
    if any(mark in lowered for mark in _AUTH_MARKS):
        return _refused(where, settings)
    cause = next((said for mark, said in _CAUSES if mark in lowered), "the connection broke")
    return StoreUnreachable(
        f"{where} does not answer ({cause}): start it, or mend postgres.host and postgres.port "
        "(MARKET_PIPELINE_POSTGRES__HOST, MARKET_PIPELINE_POSTGRES__PORT)"
    )


def _refused(where: str, settings: PostgresSettings) -> StoreAuthError:
    return StoreAuthError(
        f"{where} refuses user {settings.user!r}: mend postgres.user and postgres.password "
        "(MARKET_PIPELINE_POSTGRES__USER, MARKET_PIPELINE_POSTGRES__PASSWORD)"
    )


def _sentence(error: Exception, password: str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3]) or type(error).__name__
    return text.replace(password, "***") if password else text

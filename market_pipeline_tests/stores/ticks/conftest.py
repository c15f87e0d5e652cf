"""One PostgreSQL for the tests of ticks, as the local stack runs it, and a fresh database for each module."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

from market_pipeline.local.layout import Home
from market_pipeline.local.stack import Stack
from market_pipeline.settings import PostgresSettings
from market_pipeline.stores.ticks import TickReader

MakeDatabase = Callable[[], PostgresSettings]


@pytest.fixture(scope="session")
def postgres_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("POLYGON_API_KEY", raising=False)
        with Stack(tmp_path_factory.mktemp("ticks"), components=("postgres",), die_with_parent=True) as stack:
            yield stack


@pytest.fixture(scope="session")
def make_database(postgres_stack: Stack) -> MakeDatabase:
    """Create databases that the stack's user owns, as the stack's own superuser."""
    settings = postgres_stack.settings.postgres
    folder = Home.at(postgres_stack.home.root).socket_dir_file.read_text().strip()

    def make() -> PostgresSettings:
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(
            host=folder, port=settings.port, user="postgres", dbname="postgres", autocommit=True
        ) as admin:
            admin.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(settings.user))
            )
        return settings.model_copy(update={"database": name})

    return make


@pytest.fixture(scope="module")
def database(make_database: MakeDatabase) -> PostgresSettings:
    """A database without a schema yet, for one module."""
    return make_database()


@pytest.fixture
def reader(database: PostgresSettings) -> Iterator[TickReader]:
    with TickReader(database) as reader:
        yield reader

"""One ClickHouse server for the room's tests, and a fresh database for each module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from market_pipeline.local.clickhouse.process import ServerProcess, start
from market_pipeline.settings import ClickHouseSettings
from market_pipeline.stores import migrations
from market_pipeline.stores.clickhouse import Client, connect
from market_pipeline_tests.servers import new_database


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with start(tmp_path_factory.mktemp("clickhouse")) as process:
        yield process


@pytest.fixture(scope="module")
def clickhouse(server: ServerProcess) -> ClickHouseSettings:
    """Settings that reach the server and name a database that does not exist yet."""
    return new_database(server)


@pytest.fixture(scope="module")
def client(clickhouse: ClickHouseSettings) -> Iterator[Client]:
    """A client whose database has the schema; nothing else uses it."""
    client = connect(clickhouse)
    migrations.apply(client)
    yield client
    client.command("DROP DATABASE {name:Identifier}", {"name": client.database}, in_database=False)
    client.close()

"""One real server for the tests that only talk to it; tests that break a server start their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import clickhouse_connect
import httpx
import pytest

from market_pipeline.local.clickhouse.process import ServerProcess, start


def connect(server: ServerProcess, **options: Any) -> Any:
    """Return an ordinary ClickHouse client; without a session of its own unless asked for one."""
    return clickhouse_connect.get_client(
        host=server.host,
        port=server.port,
        **{"username": server.user, "password": server.password, "autogenerate_session_id": False, **options},
    )


def raw(server: ServerProcess, **options: Any) -> httpx.Client:
    """Return a plain HTTP client with the server's credentials."""
    auth = (server.user, server.password)
    return httpx.Client(base_url=server.url, auth=auth, trust_env=False, timeout=30, **options)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    limits = [f"--max-body={32 << 20}", f"--max-memory={1 << 30}"]
    with start(tmp_path_factory.mktemp("clickhouse"), arguments=limits) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[Any]:
    with connect(server) as connected:
        yield connected


@pytest.fixture(scope="session")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with raw(server) as connected:
        yield connected


@pytest.fixture
def table(client: Any) -> Iterator[str]:
    client.command("CREATE OR REPLACE TABLE numbered (a Int64, s String) ENGINE = MergeTree ORDER BY a")
    yield "numbered"
    client.command("DROP TABLE numbered")

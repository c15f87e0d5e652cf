"""Many clients at a time, and clients that leave."""

from __future__ import annotations

import socket
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest

from market_pipeline.local.clickhouse.process import ServerProcess
from market_pipeline_tests.local.clickhouse.conftest import connect

ENDLESS = "SELECT count() FROM numbers(1e15) WHERE sipHash64(number) = 0 SETTINGS max_threads = 1"


def send(server: ServerProcess, statement: str, query_id: str, more: str = "") -> socket.socket:
    """Send a statement and leave its answer unread."""
    credentials = b64encode(f"{server.user}:{server.password}".encode()).decode()
    connection = socket.create_connection((server.host, server.port))
    head = f"POST /?query_id={query_id}{more} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {credentials}\r\n"
    connection.sendall(f"{head}Content-Length: {len(statement)}\r\n\r\n{statement}".encode())
    return connection


def wait_for(client: Any, running: int, query_id: str, seconds: float = 10) -> float:
    """Return the seconds until so many statements of this id run."""
    started = time.monotonic()
    statement = "SELECT count() FROM system.processes WHERE Settings['log_comment'] = {id:String}"
    while client.query(statement, parameters={"id": query_id}).result_rows[0][0] != running:
        assert time.monotonic() - started < seconds
        time.sleep(0.02)
    return time.monotonic() - started


def test_sixteen_clients(server: ServerProcess, client: Any) -> None:
    client.command("CREATE OR REPLACE TABLE shared (who Int64, i Int64) ENGINE = MergeTree ORDER BY (who, i)")

    def work(who: int) -> None:
        with connect(server) as mine:
            for i in range(6):
                mine.insert_arrow("shared", pa.table({"who": [who] * 50, "i": list(range(i * 50, i * 50 + 50))}))
                seen = mine.query_arrow("SELECT count() AS n FROM shared WHERE who = {w:Int64}", parameters={"w": who})
                assert seen["n"].to_pylist() == [(i + 1) * 50]
                assert mine.command("SELECT getSetting('max_threads')", settings={"max_threads": who + 1}) == who + 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert client.query("SELECT count(), uniqExact(who, i) FROM shared").result_rows == [(4800, 4800)]
    client.command("DROP TABLE shared")


@pytest.mark.parametrize("more", ["", "&session_id=left"])
def test_a_read_stops_when_its_client_leaves(server: ServerProcess, client: Any, more: str) -> None:
    connection = send(server, ENDLESS, "leaves-while-it-computes", more)
    wait_for(client, 1, "leaves-while-it-computes")
    connection.close()
    assert wait_for(client, 0, "leaves-while-it-computes") < 5


def test_a_stream_stops_when_its_client_leaves(server: ServerProcess, client: Any) -> None:
    connection = send(server, "SELECT number FROM numbers(1e12)", "leaves-while-it-reads")
    assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    wait_for(client, 1, "leaves-while-it-reads")
    connection.close()
    assert wait_for(client, 0, "leaves-while-it-reads") < 5


def test_an_insert_whose_client_leaves_is_cancelled(server: ServerProcess, client: Any, table: str) -> None:
    credentials = b64encode(f"{server.user}:{server.password}".encode()).decode()
    connection = socket.create_connection((server.host, server.port))
    head = f"POST /?query=INSERT+INTO+{table}+FORMAT+CSV&query_id=half HTTP/1.1\r\nHost: x\r\n"
    connection.sendall(f"{head}Authorization: Basic {credentials}\r\nContent-Length: 9999999\r\n\r\n".encode())
    connection.sendall(b"1,x\n" * 50_000)
    connection.close()
    wait_for(client, 0, "half")
    assert client.command(f"SELECT count() FROM {table}") == 0
    client.insert(table, [[1, "x"]], column_names=["a", "s"])
    assert client.command(f"SELECT count() FROM {table}") == 1

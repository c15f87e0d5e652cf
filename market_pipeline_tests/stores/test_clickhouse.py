"""The client: every failure is one of our errors, in one sentence without a secret; threads share it."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import polars as pl
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from pydantic import SecretStr

from market_pipeline.errors import StoreAuthError, StoreQueryError, StoreUnreachable, Terminal, Transient
from market_pipeline.local.clickhouse.process import ServerProcess
from market_pipeline.settings import ClickHouseSettings
from market_pipeline.stores.clickhouse import AUTH_CODES, TRANSIENT_CODES, Client, connect, probe, translate
from market_pipeline_tests.servers import new_database
from market_pipeline_tests.stores.frames import utc


def test_a_wrong_password_is_one_sentence_that_names_the_setting(clickhouse: ClickHouseSettings) -> None:
    wrong = clickhouse.model_copy(update={"password": SecretStr("hunter2")})
    with pytest.raises(StoreAuthError) as caught:
        connect(wrong)
    message = str(caught.value)
    assert f"{wrong.host}:{wrong.port}" in message
    assert "MARKET_PIPELINE_CLICKHOUSE__PASSWORD" in message
    assert "hunter2" not in message
    assert isinstance(caught.value, Terminal)


def test_nobody_listening_is_one_sentence_that_names_address_and_setting(clickhouse: ClickHouseSettings) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = clickhouse.model_copy(update={"port": unused.getsockname()[1]})
        with pytest.raises(
            StoreUnreachable, match=f"127.0.0.1:{away.port}.*connection refused.*CLICKHOUSE__PORT"
        ) as caught:
            connect(away)
    assert isinstance(caught.value, Transient)


def test_an_unknown_host_is_said_so(clickhouse: ClickHouseSettings) -> None:
    with pytest.raises(StoreUnreachable, match=r"no-such-host\.invalid.*unknown host.*CLICKHOUSE__HOST"):
        connect(clickhouse.model_copy(update={"host": "no-such-host.invalid"}))


def test_a_server_that_never_answers_times_out(clickhouse: ClickHouseSettings) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        mute = clickhouse.model_copy(update={"port": silent.getsockname()[1], "request_timeout": 1.0})
        with pytest.raises(StoreUnreachable, match="timed out"):
            connect(mute)


def test_something_else_on_the_port_is_said_so(clickhouse: ClickHouseSettings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def answer() -> None:
            while True:
                try:
                    peer, _ = other.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(65536)
                    peer.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(StoreQueryError, match="not ClickHouse's"):
            connect(clickhouse.model_copy(update={"port": other.getsockname()[1]}))
        other.shutdown(socket.SHUT_RDWR)


def test_a_refused_statement_carries_the_server_s_code(client: Client) -> None:
    with pytest.raises(StoreQueryError, match="UNKNOWN_IDENTIFIER") as caught:
        client.rows("SELECT no_such_column FROM bars")
    assert caught.value.code == 47
    with pytest.raises(StoreQueryError, match="has the schema been applied") as caught:
        client.rows("SELECT 1 FROM no_such_table")
    assert caught.value.code == 60


@pytest.mark.parametrize("code", sorted(TRANSIENT_CODES))
def test_overload_and_outage_are_transient(code: int, clickhouse: ClickHouseSettings) -> None:
    error = translate(DatabaseError(f"Code: {code}. DB::Exception: busy", code=code), clickhouse)
    assert isinstance(error, StoreUnreachable)
    assert isinstance(error, Transient)
    assert f"{clickhouse.host}:{clickhouse.port}" in str(error)


def test_a_password_that_the_server_repeats_is_hidden(clickhouse: ClickHouseSettings) -> None:
    error = DatabaseError(f"Code: 62. bad: {clickhouse.password.get_secret_value()}", code=62)
    assert clickhouse.password.get_secret_value() not in str(translate(error, clickhouse))
    assert AUTH_CODES.isdisjoint(TRANSIENT_CODES)


def test_a_query_that_exceeds_its_time_is_transient(client: Client) -> None:
    with pytest.raises(StoreUnreachable, match="took too long"):
        client.rows(
            "SELECT sum(sleepEachRow(0.2)) AS s FROM numbers(50) SETTINGS max_execution_time = 1, max_block_size = 1"
        )


def test_the_server_goes_away_and_comes_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    from market_pipeline.local.clickhouse.process import start

    folder = tmp_path_factory.mktemp("restarted")
    with start(folder) as first:
        settings = new_database(first)
        client = connect(settings)
        probe(client)
        first.kill()
        with pytest.raises(StoreUnreachable):
            client.rows("SELECT 1 AS one")
        with start(folder, port=settings.port):
            assert client.rows("SELECT 1 AS one") == [(1,)]
            client.close()


def test_probe_needs_no_schema_and_leaves_a_working_table(server: ServerProcess) -> None:
    client = connect(new_database(server))
    assert 0 < probe(client) < 5
    assert 0 < probe(client) < 5
    client.command("DROP DATABASE {name:Identifier}", {"name": client.database}, in_database=False)
    client.close()


def test_one_client_serves_many_threads(client: Client) -> None:
    def ask(number: int) -> bool:
        rows = client.rows("SELECT sum(number) AS s FROM numbers({n:UInt32})", {"n": number})
        return rows == [(number * (number - 1) // 2,)]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(1, 200)))


def test_values_travel_as_parameters(client: Client) -> None:
    texts = ["it's", "a\\b", "tab\there", "line\nbreak", "'; DROP TABLE bars", "ünï", ""]
    assert client.rows("SELECT {t:Array(String)} AS t", {"t": texts}) == [(texts,)]
    moment = utc("2024-03-10T06:59:59") + timedelta(milliseconds=123)
    assert client.rows("SELECT {at:DateTime64(3, 'UTC')} AS at", {"at": moment}) == [(moment,)]
    assert client.frame("SELECT 1 AS a WHERE 0").schema == {"a": pl.UInt8}

"""Sessions: temporary tables, settings and databases that outlive a request, for one request at a time."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from market_pipeline.local.clickhouse.process import ServerProcess
from market_pipeline_tests.local.clickhouse.conftest import connect


def ask(http: httpx.Client, statement: str, session: str, **parameters: str) -> httpx.Response:
    return http.post("/", params={"session_id": session, **parameters}, content=statement)


def test_temporary_tables_belong_to_their_session(server: ServerProcess) -> None:
    with connect(server, session_id="mine") as mine, connect(server, session_id="other") as other:
        mine.command("CREATE TEMPORARY TABLE seen (a Int64)")
        mine.insert("seen", [[1], [2]], column_names=["a"])
        assert mine.query("SELECT sum(a) FROM seen").result_rows == [(3,)]
        with pytest.raises(DatabaseError, match="seen"):
            other.query("SELECT * FROM seen")


def test_settings_and_databases(http: httpx.Client) -> None:
    setting, database = "SELECT getSetting('max_threads')", "SELECT currentDatabase()"
    ask(http, "SET max_threads = 7", "s1")
    assert ask(http, setting, "s1").text == "7\n"
    usual = ask(http, setting, "s2").text
    assert ask(http, setting, "s2", max_threads="5").text == "5\n"
    assert ask(http, setting, "s2").text == usual != "5\n"
    assert ask(http, "SELECT getSetting('max_execution_time')", "s2", max_execution_time="9").text == "9\n"
    assert ask(http, "SELECT getSetting('max_execution_time')", "s2").text == "600\n"

    ask(http, "USE system", "s1")
    assert ask(http, database, "s1").text == "system\n"
    assert ask(http, database, "s1", database="default").text == "default\n"
    assert ask(http, database, "s1").text == "system\n"
    assert http.post("/", content=database).text == "default\n"


def test_a_session_serves_one_request_at_a_time(http: httpx.Client) -> None:
    started = threading.Event()

    def sleep() -> None:
        started.set()
        # the other thread may hold the session at the very moment: then it is this request that is refused
        while ask(http, "SELECT sleep(1)", "busy").status_code != 200:
            pass

    other = threading.Thread(target=sleep)
    other.start()
    started.wait()
    codes: set[str | None] = set()
    while other.is_alive() and "373" not in codes:
        codes.add(ask(http, "SELECT 1", "busy").headers.get("x-clickhouse-exception-code"))
    other.join()
    assert "373" in codes
    assert ask(http, "SELECT 1", "busy").text == "1\n"


def test_a_session_is_free_when_its_answer_is_read(http: httpx.Client) -> None:
    for _ in range(100):
        assert ask(http, "SELECT number FROM numbers(1000) FORMAT Null", "quick").status_code == 200
        assert ask(http, "SELECT number FROM numbers(1000)", "quick").status_code == 200


def test_session_check_close_and_timeout(http: httpx.Client) -> None:
    missing = ask(http, "SELECT 1", "absent", session_check="1")
    assert (missing.status_code, missing.headers["x-clickhouse-exception-code"]) == (404, "372")
    ask(http, "CREATE TEMPORARY TABLE t (a Int8)", "short")
    assert ask(http, "SELECT count() FROM t", "short", close_session="1").text == "0\n"
    assert ask(http, "SELECT count() FROM t", "short").status_code == 404
    ask(http, "SELECT 1", "brief", session_timeout="0.1")
    time.sleep(0.2)
    assert ask(http, "SELECT 1", "brief", session_check="1").status_code == 404
    for bad in ("x", "-1", "100000"):
        assert ask(http, "SELECT 1", "brief", session_timeout=bad).headers["x-clickhouse-exception-code"] == "374"


def test_external_data_leave_with_their_request(http: httpx.Client) -> None:
    asked = {"query": "SELECT sum(a) FROM e", "e_structure": "a Int8", "session_id": "with"}
    assert http.post("/", params=asked, files={"e": b"1\n2\n"}).text == "3\n"
    assert ask(http, "SELECT * FROM e", "with").status_code == 404


def test_clients_with_a_session_of_their_own(server: ServerProcess) -> None:
    clients: list[Any] = [connect(server, autogenerate_session_id=True) for _ in range(5)]
    for i, client in enumerate(clients):
        client.command(f"SET max_threads = {i + 1}")
    assert [client.command("SELECT getSetting('max_threads')") for client in clients] == [1, 2, 3, 4, 5]

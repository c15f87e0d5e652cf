"""Statements and their answers, over HTTP, with the client that the pipeline uses and without it."""

from __future__ import annotations

import datetime as dt
import io
import json
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError
from clickhouse_connect.driver.external import ExternalData

from market_pipeline.local.clickhouse.compression import decompressor
from market_pipeline.local.clickhouse.process import ServerProcess, start
from market_pipeline_tests.local.clickhouse.conftest import connect, raw


def test_handshake(client: Any) -> None:
    assert client.server_version.startswith("26.")
    assert str(client.server_tz) == "UTC"
    assert client.command("SELECT timezone()") == "UTC"
    assert client.ping()


def test_native_arrow_and_json_agree(client: Any, http: httpx.Client) -> None:
    statement = "SELECT number AS n, toString(number) AS s, toDateTime64(number, 3, 'UTC') AS t FROM numbers(3)"
    rows = client.query(statement).result_rows
    arrow = client.query_arrow(statement)
    lines = [json.loads(line) for line in http.post("/", content=f"{statement} FORMAT JSONEachRow").text.splitlines()]
    assert [row[:2] for row in rows] == [(0, "0"), (1, "1"), (2, "2")]
    assert arrow["n"].to_pylist() == [line["n"] for line in lines] == [0, 1, 2]
    moments = [dt.datetime(1970, 1, 1, 0, 0, second, tzinfo=dt.UTC) for second in range(3)]
    assert arrow["t"].to_pylist() == moments


@pytest.mark.parametrize("data_format", ["Native", "ArrowStream", "JSONEachRow", "RowBinary", "TSV", "CSV", "Parquet"])
def test_many_blocks_form_one_answer(http: httpx.Client, data_format: str) -> None:
    """An answer block by block says the same as the answer as a whole."""
    statement = f"SELECT number, toString(number) AS s FROM numbers(200000) FORMAT {data_format}"
    options = {"max_block_size": "20000", "max_threads": "1"}
    streamed = http.post("/", params=options, content=statement)
    whole = http.post("/", params={**options, "wait_end_of_query": "1"}, content=statement)
    assert streamed.status_code == whole.status_code == 200
    assert streamed.headers["x-clickhouse-format"] == data_format
    if data_format == "ArrowStream":
        with ipc.open_stream(streamed.content) as left, ipc.open_stream(whole.content) as right:
            assert left.read_all().equals(right.read_all())
    elif data_format != "Native":  # its blocks are cut elsewhere
        assert streamed.content == whole.content
    else:
        assert len(streamed.content) >= len(whole.content) - 1000


def test_arrow_stream_with_dictionaries_is_one_stream(http: httpx.Client) -> None:
    statement = (
        "SELECT toLowCardinality(toString(intDiv(number, 1000))) AS s FROM numbers(9000) FORMAT ArrowStream "
        "SETTINGS max_block_size = 1000, max_threads = 1, output_format_arrow_low_cardinality_as_dictionary = 1"
    )
    with ipc.open_stream(http.post("/", content=statement).content) as reader:
        values = reader.read_all()["s"].to_pylist()
    assert values == [str(i // 1000) for i in range(9000)]


def test_empty_arrow_answers_have_a_schema(client: Any) -> None:
    empty = client.query_arrow("SELECT number AS n FROM numbers(0)")
    assert empty.num_rows == 0
    assert empty.column_names == ["n"]


def test_parameters(client: Any) -> None:
    found = client.query(
        "SELECT {s:String}, {n:Int64} + 1, {a:Array(String)}, {t:DateTime64(3)}",
        parameters={"s": "it's; -- \\", "n": -5, "a": ["x'", "y"], "t": dt.datetime(2024, 1, 2, 3, 4, 5)},
    ).result_rows[0]
    assert found[:3] == ("it's; -- \\", -4, ["x'", "y"])
    with pytest.raises(DatabaseError, match="456"):
        client.query("SELECT {missing:Int8}")


def test_settings_last_for_one_request(client: Any) -> None:
    statement = "SELECT getSetting('max_threads')"
    usual = client.command(statement)
    assert client.command(statement, settings={"max_threads": 3}) == 3
    assert client.command(statement) == usual


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1 SETTINGS max_threads = 3",
        "EXPLAIN SELECT 1 SETTINGS max_threads = 3",
        "INSERT INTO numbered SETTINGS max_threads = 3 VALUES (1, 'x')",
        "INSERT INTO numbered SETTINGS max_threads = 3 SELECT 1, 'x'",
        "SET max_threads = 3",
    ],
)
def test_a_statement_leaves_no_settings_behind(http: httpx.Client, table: str, statement: str) -> None:
    """Handles are used again by later requests of the same settings."""
    usual = http.post("/", content="SELECT getSetting('max_threads')").text
    assert http.post("/", content=statement).status_code == 200
    assert [http.post("/", content="SELECT getSetting('max_threads')").text for _ in range(3)] == [usual] * 3


def test_limits_of_time_and_memory(http: httpx.Client) -> None:
    endless = "SELECT count() FROM numbers(1e15) WHERE sipHash64(number) = 0"
    late = http.post("/", params={"max_execution_time": "1"}, content=endless)
    assert (late.status_code, late.headers["x-clickhouse-exception-code"]) == (408, "159")
    large = http.post("/", content="SELECT length(groupArray(number)) FROM numbers(1e9)")
    assert large.headers["x-clickhouse-exception-code"] == "241"
    assert http.post("/", content="SELECT 1").text == "1\n"


def test_databases_last_for_one_request(http: httpx.Client) -> None:
    current = "SELECT currentDatabase()"
    assert http.post("/", params={"database": "system"}, content=current).text == "system\n"
    http.post("/", content="USE system")
    assert http.post("/", content=current).text == "default\n"


@pytest.mark.parametrize(
    ("statement", "code", "status"),
    [
        ("SELECT * FROM absent", 60, 404),
        ("SELEC 1", 62, 400),
        ("", 62, 400),
        (" -- nothing", 62, 400),
        ("SELECT throwIf(1)", 395, 500),
        ("SELECT 1; SELECT 2", 62, 400),
        ("INSERT INTO absent SELECT 1; SELECT 2", 62, 400),
        ("SYSTEM SHUTDOWN", 1, 500),
        ("/* x /* SELECT */ */ SYSTEM /* y */ KILL", 1, 500),
        ("CREATE TABLE x (a Int8) ENGINE = Memory PARALLEL WITH SYSTEM SHUTDOWN", 1, 500),
        ("INSERT INTO absent VALUES (1)", 60, 404),
        ("SELECT 1 SETTINGS max_threads = 'no'", 27, 500),
    ],
)
def test_errors_have_code_and_status(http: httpx.Client, statement: str, code: int, status: int) -> None:
    answer = http.post("/", content=statement)
    assert (answer.status_code, answer.headers["x-clickhouse-exception-code"]) == (status, str(code))
    assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
    assert "(version 26." in answer.text
    assert http.post("/", content="SELECT 1").text == "1\n"


def test_semicolons_that_separate_nothing(http: httpx.Client) -> None:
    for statement in ("SELECT 'a;b';", "SELECT 'a;b' ; -- c;d", "/* ; */ SELECT 'a;b'"):
        assert http.post("/", content=statement).text == "a;b\n"


def test_words_of_shutdown_may_be_names(http: httpx.Client) -> None:
    answer = http.post("/", content="SELECT system shutdown FROM (SELECT 7 AS system)")
    assert answer.text == "7\n"


def test_an_error_in_midstream_is_told_inside_the_stream(client: Any, http: httpx.Client) -> None:
    statement = (
        "SELECT number, throwIf(number = 150000, 'too far') FROM numbers(200000) SETTINGS max_block_size = 1000, "
        "max_threads = 1"
    )
    answer = http.post("/", content=f"{statement} FORMAT TSV")
    tag = answer.headers["x-clickhouse-exception-tag"]
    assert answer.status_code == 200
    assert answer.text.startswith("0\t0\n1\t0\n")
    assert answer.text.count("__exception__\r\n" + tag) == 1
    assert answer.text.endswith(f" {tag}\r\n__exception__\r\n")
    assert "Code: 395" in answer.text
    with pytest.raises(ClickHouseError, match="too far"):
        client.query(statement)


def test_an_error_in_midstream_of_arrow_is_no_short_table(http: httpx.Client) -> None:
    statement = "SELECT throwIf(number = 150000) AS n FROM numbers(200000) FORMAT ArrowStream"
    options = {"max_block_size": "1000", "max_threads": "1"}
    content = http.post("/", params=options, content=statement).content
    with pytest.raises(pa.ArrowInvalid), ipc.open_stream(content) as reader:
        reader.read_all()


def test_ping_needs_no_password_and_nothing_else_goes_without(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as stranger:
        assert stranger.get("/ping").text == "Ok.\n"
        for auth in (None, ("default", ""), ("default", server.password + "x"), ("root", server.password)):
            answer = stranger.post("/", content="SELECT 1", auth=auth or httpx.USE_CLIENT_DEFAULT)
            assert answer.status_code == 403
            assert answer.headers["x-clickhouse-exception-code"] == "516"
            assert server.password not in answer.text
        assert stranger.get("/elsewhere").status_code == 404
    with pytest.raises(ClickHouseError, match="Authentication failed"):
        connect(server, password="wrong")


def test_external_data(client: Any, http: httpx.Client) -> None:
    symbols = ExternalData(
        file_name="symbols", data=b"1,EURUSD\n2,it's\n", fmt="CSV", structure="id UInt8, name String"
    )
    statement = "SELECT name FROM symbols WHERE id = {id:UInt8}"
    assert client.query(statement, external_data=symbols, parameters={"id": 2}).result_rows == [("it's",)]
    assert http.post("/", content="SELECT * FROM symbols").headers["x-clickhouse-exception-code"] == "60"
    asked = {"query": "SELECT sum(_1) FROM numbers_", "numbers__types": "UInt8"}
    assert http.post("/", params=asked, files={"numbers_": b"1\n2\n"}).text == "3\n"
    asked = {"query": "SELECT 1", "bad_structure": "a Int8) ENGINE = Memory; SYSTEM SHUTDOWN; --"}
    assert http.post("/", params=asked, files={"bad": b"1\n"}).status_code == 400


def test_query_in_a_form(http: httpx.Client) -> None:
    files = {"query": (None, "SELECT {a:Int8} + {b:Int8}"), "param_a": (None, "3"), "param_b": (None, "4")}
    assert http.post("/", files=files).text == "7\n"


@pytest.fixture(scope="module")
def compressing(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with (
        start(tmp_path_factory.mktemp("compressing"), arguments=["--compress-answers"]) as running,
        raw(running) as http,
    ):
        yield http


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "lz4"])
def test_answers_are_compressed_for_those_who_ask(compressing: httpx.Client, encoding: str) -> None:
    def ask(statement: str, **parameters: str) -> bytes:
        options = {"enable_http_compression": "1", "max_block_size": "20000", **parameters}
        headers = {"Accept-Encoding": encoding}
        with compressing.stream("POST", "/", params=options, content=statement, headers=headers) as answer:
            encoded = b"".join(answer.iter_raw())
            assert answer.headers["content-encoding"] == encoding
        feed = decompressor(encoding)
        assert feed is not None
        data = feed.feed(encoded, 1 << 24)
        assert feed.complete
        return data

    expected = "".join(f"{i}\n" for i in range(100_000)).encode()
    assert ask("SELECT number FROM numbers(100000)") == expected
    assert ask("SELECT number FROM numbers(100000)", wait_end_of_query="1") == expected
    assert ask("SELECT number FROM numbers(100000) FORMAT ArrowStream").startswith(b"\xff\xff\xff\xff")
    assert b"__exception__" in ask("SELECT throwIf(number = 90000) FROM numbers(100000)")
    failed = compressing.post("/", params={"enable_http_compression": "1"}, content="SELEC")
    assert "content-encoding" not in failed.headers


@pytest.mark.parametrize("compression", ["lz4", "zstd", "gzip", "br", False])
def test_the_client_compresses_what_it_sends(server: ServerProcess, table: str, compression: str | bool) -> None:
    with connect(server, compress=compression) as client:
        client.insert(table, [[i, "x" * 50] for i in range(5000)], column_names=["a", "s"])
        assert client.query_np(f"SELECT a FROM {table} ORDER BY a").ravel().tolist() == list(np.arange(5000))


def test_bytes_come_in_any_chunks(http: httpx.Client, table: str) -> None:
    data = io.BytesIO(b"".join(b"%d\tx\n" % i for i in range(3000)))
    answer = http.post(
        "/", params={"query": f"INSERT INTO {table} FORMAT TSV"}, content=iter(lambda: data.read(7), b"")
    )
    assert answer.status_code == 200
    assert json.loads(answer.headers["x-clickhouse-summary"])["written_rows"] == "3000"

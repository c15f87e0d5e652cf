from __future__ import annotations

import base64
from typing import Any

import pytest

from market_pipeline.local.clickhouse.bodies import Part
from market_pipeline.local.clickhouse.errors import ClickHouseError, Code, exception_block
from market_pipeline.local.clickhouse.protocol import Credentials, Request, parse

CREDENTIALS = Credentials("default", "pässword")


def request(query: bytes = b"", **headers: str | bytes) -> Request:
    def encoded(value: str | bytes) -> bytes:
        return value if isinstance(value, bytes) else value.encode()

    scope: dict[str, Any] = {
        "method": "POST",
        "path": "/",
        "query_string": query,
        "headers": [(name.replace("_", "-").encode(), encoded(value)) for name, value in headers.items()],
    }
    return parse(scope)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "good",
    [
        request(Authorization=basic("default", "pässword")),
        request(X_ClickHouse_User="default", X_ClickHouse_Key="pässword"),
        request(X_ClickHouse_Key="pässword".encode()),
        request(b"user=default&password=p%C3%A4ssword"),
        request(b"password=p%C3%A4ssword"),
    ],
)
def test_every_way_to_authenticate(good: Request) -> None:
    CREDENTIALS.check(good)


@pytest.mark.parametrize(
    "bad",
    [
        request(),
        request(Authorization=basic("default", "")),
        request(Authorization=basic("other", "pässword")),
        request(Authorization="Basic !!!"),
        request(Authorization="Bearer pässword"),
        request(b"password=%C3%A4"),
        request(X_ClickHouse_User="default", Authorization=basic("default", "pässword")),
    ],
)
def test_anything_else_is_refused_without_the_password(bad: Request) -> None:
    with pytest.raises(ClickHouseError) as caught:
        CREDENTIALS.check(bad)
    assert (caught.value.code, caught.value.status) == (Code.AUTHENTICATION_FAILED, 403)
    assert "pässword" not in caught.value.text + repr(CREDENTIALS)


def test_parameters_are_sorted_by_what_they_are() -> None:
    asked = request(b"query=SELECT+1&param_a=x&max_threads=2&database=d&session_id=s&async_insert=1&e_structure=x+Int8")
    asked.add_form(Part("e", True, b"1\n"))
    asked.add_form(Part("param_b", False, b"2"))
    assert asked.sql == b"SELECT 1"
    assert asked.database == "d"
    assert asked.settings == (("async_insert", "1"), ("max_threads", "2"))
    assert asked.query_parameters == {"a": "x", "b": "2"}
    assert [part.name for part in asked.externals] == ["e"]


def test_names_that_would_be_sql_are_refused() -> None:
    with pytest.raises(ClickHouseError, match="Unknown setting"):
        _ = request(b"a%3D1,b=2").settings
    with pytest.raises(ClickHouseError, match="query parameter"):
        _ = request(b"param_a%3D1=2").query_parameters
    with pytest.raises(ClickHouseError, match="Unknown format"):
        _ = request(b"default_format=CSV%0d%0aX").default_format


def test_a_query_id_that_would_break_a_header_is_replaced() -> None:
    assert request(b"query_id=mine-1").query_id == "mine-1"
    assert "\n" not in request(b"query_id=a%0d%0aSet-Cookie:x").query_id
    assert len(request().query_id) == 36


@pytest.mark.parametrize(
    ("text", "code", "rendered"),
    [
        ("Code: 60. DB::Exception: no (NAME)", 60, "Code: 60. DB::Exception: no (NAME) (version 1 (chDB))"),
        ("Code: 60. DB::Exception: Code: 60. DB::Exception: no", 60, "Code: 60. DB::Exception: no (version 1 (chDB))"),
        ("Code: 1. DB::Exception: x (version 9)", 1, "Code: 1. DB::Exception: x (version 9)"),
        ("lost", 1002, "Code: 1002. DB::Exception: lost (UNKNOWN_EXCEPTION) (version 1 (chDB))"),
    ],
)
def test_errors_of_the_engine(text: str, code: int, rendered: str) -> None:
    error = ClickHouseError(text)
    assert (error.code, error.rendered("1")) == (code, rendered)


def test_exception_block_names_its_length_and_tag() -> None:
    block = exception_block("0123456789abcdef", "Code: 395. ü")
    assert (
        block
        == b"\r\n__exception__\r\n0123456789abcdef\r\nCode: 395. \xc3\xbc\n14 0123456789abcdef\r\n__exception__\r\n"
    )

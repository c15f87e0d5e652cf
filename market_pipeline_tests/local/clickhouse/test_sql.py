from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.local.clickhouse import sql
from market_pipeline.local.clickhouse.errors import ClickHouseError

WORDS = st.sampled_from(
    ["SELECT", "x", "42", "'it''s; FORMAT X'", r"'a\'b'", "`q;`", '"q"', "$$h ; '$$", "$t$;$t$", "("]
)
NOISE = st.sampled_from(
    [" ", "\n", "\t", "-- it's; SELECT\n", "# note\n", "#! note\n", "/* ; ' */", "/* a /* b */ c */"]
)


def bare(text: bytes) -> list[bytes]:
    return [token for _, token in sql.tokens(text)]


@given(st.binary(max_size=300))
def test_tokens_and_gaps_make_up_any_text(text: bytes) -> None:
    end = 0
    for at, token in sql.tokens(text):
        assert at >= end
        assert text[at : at + len(token)] == token
        assert token
        end = at + len(token)
    assert end <= len(text)


@given(st.lists(st.tuples(NOISE, WORDS), min_size=1, max_size=20))
def test_blanks_and_comments_never_change_the_tokens(pairs: list[tuple[str, str]]) -> None:
    plain = " ".join(word for _, word in pairs).encode()
    noisy = "".join(noise + word + " " for noise, word in pairs).encode()
    assert bare(noisy) == bare(plain) == [word.encode() for _, word in pairs]


@pytest.mark.parametrize(
    "text", [b"'" * 1, b"'" + b"ab'' " * 40_000, b"/*" * 50_000, b"`" + b"x" * 200_000, b"$a$" * 9]
)
def test_text_that_never_closes_costs_linear_time(text: bytes) -> None:
    started = time.perf_counter()
    assert b"".join(bare(text)).replace(b" ", b"") in text.replace(b" ", b"")
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"select 1", "SELECT"),
        (b"  -- INSERT\n SELECT 1", "SELECT"),
        (b"/* a /* INSERT */ */ WITH 1 AS x SELECT x", "WITH"),
        (b"# INSERT\nSHOW TABLES", "SHOW"),
        (b"(SELECT 1)", "("),
        (b" /* nothing */ -- here", ""),
        (b"", ""),
    ],
)
def test_first_word(text: bytes, word: str) -> None:
    assert sql.first_word(text) == word


@pytest.mark.parametrize(
    ("text", "statement", "data_format", "data"),
    [
        (b"INSERT INTO t FORMAT CSV\n1,2\n", b"INSERT INTO t ", "CSV", b"1,2\n"),
        (b"INSERT INTO t FORMAT Native", b"INSERT INTO t ", "Native", b""),
        (b"insert into t (a, b) settings x = 1 format TSV ; \n1", b"insert into t (a, b) settings x = 1 ", "TSV", b"1"),
        (b"INSERT INTO t VALUES (1, 'FORMAT X')", b"INSERT INTO t ", "Values", b" (1, 'FORMAT X')"),
        (
            b"INSERT INTO t (`FORMAT`) /* FORMAT X */ VALUES (1)",
            b"INSERT INTO t (`FORMAT`) /* FORMAT X */ ",
            "Values",
            b" (1)",
        ),
        (b"INSERT INTO t", b"INSERT INTO t", "Values", b""),
        (
            b"INSERT INTO FUNCTION file('x', 'CSV') FORMAT CSV\n1",
            b"INSERT INTO FUNCTION file('x', 'CSV') ",
            "CSV",
            b"1",
        ),
        (b'INSERT INTO t FORMAT JSONEachRow {"a": 1}', b"INSERT INTO t ", "JSONEachRow", b'{"a": 1}'),
        (b"INSERT INTO t FORMAT RowBinary\n\n\x00\xff", b"INSERT INTO t ", "RowBinary", b"\n\x00\xff"),
    ],
)
def test_insert_is_cut_at_its_data(text: bytes, statement: bytes, data_format: str, data: bytes) -> None:
    cut = sql.split_insert(text)
    assert cut.carries_data
    assert (cut.statement, cut.format, text[cut.data_at :]) == (statement, data_format, data)


@pytest.mark.parametrize("source", [b"SELECT 1 FORMAT CSV", b"WITH 1 AS x SELECT x", b"FROM INFILE 'x' FORMAT CSV"])
def test_insert_that_finds_its_rows_itself_is_left_whole(source: bytes) -> None:
    cut = sql.split_insert(b"INSERT INTO t (a) " + source)
    assert not cut.carries_data
    assert cut.statement == b"INSERT INTO t (a) " + source


@given(st.binary(max_size=200))
def test_data_are_cut_off_byte_for_byte(data: bytes) -> None:
    text = b"INSERT INTO t (a) FORMAT RowBinary\n" + data
    cut = sql.split_insert(text)
    assert text[cut.data_at :] == data


def test_second_statement_behind_an_insert_is_refused() -> None:
    with pytest.raises(ClickHouseError, match="Multi-statements"):
        sql.split_insert(b"INSERT INTO t (a); SYSTEM SHUTDOWN FORMAT CSV\n")
    assert sql.split_insert(b"INSERT INTO t (a) ; -- end").format == "Values"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"SELECT 1 FORMAT JSON", "JSON"),
        (b"SELECT 1 format Native;\n", "Native"),
        (b"SELECT 1 FORMAT CSV SETTINGS max_threads = 1", "CSV"),
        (b"SELECT 1 FORMAT CSV -- the end", "CSV"),
        (b"SELECT 1 /* FORMAT CSV */", None),
        (b"SELECT 1 -- FORMAT CSV", None),
        (b"SELECT 'FORMAT CSV'", None),
        (b"SELECT '-- x', 1 FORMAT CSV", "CSV"),
        (b"SELECT 1", None),
    ],
)
def test_output_format(text: bytes, found: str | None) -> None:
    assert sql.output_format(text) == found


@pytest.mark.parametrize(
    "text",
    [
        b"SYSTEM SHUTDOWN",
        b"system /* now */ kill",
        b"/* a /* SELECT */ */ SYSTEM SHUTDOWN",
        b"SYSTEM\n--x\nRESTART DISK d",
        b"SYSTEM SUSPEND FOR 10 SECOND",
        b"EXECUTE AS u SYSTEM SHUTDOWN",
        b"CREATE TABLE a (x Int8) ENGINE = Memory PARALLEL WITH SYSTEM KILL",
    ],
)
def test_statements_that_end_the_process_are_seen(text: bytes) -> None:
    assert sql.may_end_process(text)


@pytest.mark.parametrize(
    "text", [b"SELECT 'SYSTEM SHUTDOWN'", b"SYSTEM FLUSH LOGS", b"KILL QUERY WHERE 1", b"SELECT shutdown"]
)
def test_harmless_statements_are_not(text: bytes) -> None:
    assert not sql.may_end_process(text)


def test_input_is_seen_outside_strings_only() -> None:
    assert sql.reads_input(b"INSERT INTO t SELECT a FROM Input ('a Int8') FORMAT CSV")
    assert not sql.reads_input(b"INSERT INTO t SELECT 'input(' FROM input")


@given(st.text())
def test_a_quoted_value_is_one_token(value: str) -> None:
    assert len(bare(sql.quote_string(value).encode(errors="surrogatepass"))) == 1
    assert len(bare(sql.quote_identifier(value).encode(errors="surrogatepass"))) == 1

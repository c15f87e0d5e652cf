"""As much of ClickHouse's SQL as a server in front of the engine must read: tokens, never meaning.

The engine parses; this module only finds where an INSERT ends and its data begin, which format an answer has, and
statements that must not reach an engine that lives in this process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from market_pipeline.local.clickhouse.errors import ClickHouseError, Code

Settings = tuple[tuple[str, str], ...]
"""Names and values of settings, sorted by name."""

READS = frozenset(
    {"SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN", "CHECK", "VALUES", "FROM", "("},
)
"""First words of statements that read and change nothing."""

RETURNS_ROWS = READS | {"OPTIMIZE", "KILL", "BACKUP", "RESTORE"}
"""First words of statements whose answer is a table."""

# Possessive repeats: a quote that never closes must not cost quadratic time.
_TOKEN = re.compile(
    rb"""(?P<blank>\s++|--[^\n]*+\n?|\#[!\ ][^\n]*+\n?)
       |'(?:[^'\\]++|\\.|'')*+'
       |`(?:[^`\\]++|\\.)*+`
       |"(?:[^"\\]++|\\.)*+"
       |\$(?P<tag>\w*+)\$.*?\$(?P=tag)\$
       |\w++
       |.""",
    re.S | re.X,
)
_COMMENT_EDGE = re.compile(rb"/\*|\*/")
_FORMAT_TAIL = re.compile(rb"\bFORMAT\s+(\w+)\s*(?:SETTINGS\s+[^;]*)?;?\s*$", re.I)
_MAY_COMMENT = re.compile(rb"--|/\*|#[! ]")
_AFTER_FORMAT = re.compile(rb"[ \t\r]*;?[ \t\r]*\n?")
_ENDS_PROCESS = re.compile(rb"\b(SHUTDOWN|KILL|SUSPEND|RESTART)\b", re.I)
_WORD = re.compile(rb"\w")

# They end, stop or hang the process that the engine lives in.
_FORBIDDEN_SYSTEM = ((b"SHUTDOWN",), (b"KILL",), (b"SUSPEND",), (b"RESTART", b"DISK"))


def tokens(sql: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of every token that is neither blank nor comment; never raise, whatever the bytes.

    A string, quoted identifier or heredoc is one token. Comments nest, as they do in ClickHouse.
    """
    at = 0
    while at < len(sql):
        if sql.startswith(b"/*", at):
            at = _comment_end(sql, at)
            continue
        match = _TOKEN.match(sql, at)
        assert match is not None, "the last alternative matches any byte"
        if match.lastgroup != "blank":
            yield at, match.group()
        at = match.end()


def _comment_end(sql: bytes, at: int) -> int:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, at):
        depth += 1 if edge.group() == b"/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)


def first_word(sql: bytes) -> str:
    """Return the first token in capitals, '' for a text of blanks and comments."""
    for _, token in tokens(sql):
        return token.decode(errors="replace").upper()
    return ""


@dataclass(frozen=True)
class Insert:
    """An INSERT cut into its statement and its data.

    `statement` ends before FORMAT or VALUES; the data begin at `data_at` of the text that was cut. Without
    `carries_data` the statement finds its rows itself (INSERT ... SELECT) and is the whole text.
    """

    statement: bytes
    format: str
    data_at: int
    carries_data: bool = True


def split_insert(text: bytes) -> Insert:
    """Cut the beginning of an INSERT, `INSERT INTO t (...) [SETTINGS ...] FORMAT X` and data, at its data.

    An INSERT that names neither format nor source takes data in the format Values. Raises ClickHouseError
    (SYNTAX_ERROR) where another statement follows.
    """
    depth = 0
    format_at: int | None = None
    for count, (at, token) in enumerate(tokens(text)):
        if format_at is not None and depth == 0 and _WORD.match(token):
            end = at + len(token)
            gap = _AFTER_FORMAT.match(text, end, end + 64)
            return Insert(text[:format_at], token.decode(), gap.end() if gap else end)
        depth += (token == b"(") - (token == b")")
        word = token.upper()
        format_at = None
        if depth == 0 and count > 1:
            if word == b"VALUES":
                return Insert(text[:at], "Values", at + len(token))
            if word in (b"SELECT", b"WITH", b"WATCH", b"FROM"):
                return Insert(text, "", 0, carries_data=False)
            if word == b"FORMAT":
                format_at = at
            if word == b";" and first_word(text[at + 1 :]):
                raise multiple_statements()
    return Insert(text, "Values", len(text))


def output_format(sql: bytes) -> str | None:
    """Return the format that a statement names in its last clause, None where it names none."""
    if not _MAY_COMMENT.search(sql):
        match = _FORMAT_TAIL.search(sql)
        return match.group(1).decode() if match else None
    match = _FORMAT_TAIL.search(b" ".join(token for _, token in tokens(sql)))
    return match.group(1).decode() if match else None


def reads_input(sql: bytes) -> bool:
    """Say whether a statement calls the table function input(), which takes its rows from the request's body."""
    last = b""
    for _, token in tokens(sql):
        if last == b"INPUT" and token == b"(":
            return True
        last = token.upper()
    return False


def may_hold_several(sql: bytes) -> bool:
    """Say whether a semicolon stands anywhere but at the end: only then is it worth asking the parser."""
    return b";" in sql.rstrip().rstrip(b";")


def may_end_process(sql: bytes) -> bool:
    """Say whether the words of SYSTEM SHUTDOWN, KILL, SUSPEND or RESTART DISK follow one another anywhere.

    Anywhere, because other statements can carry them (EXECUTE AS, PARALLEL WITH). The parser has the last word: they
    may be names.
    """
    if not _ENDS_PROCESS.search(sql):
        return False
    words = [token.upper() for _, token in tokens(sql)]
    starts = [i for i, word in enumerate(words) if word == b"SYSTEM"]
    return any(tuple(words[i + 1 : i + 1 + len(tail)]) == tail for i in starts for tail in _FORBIDDEN_SYSTEM)


def multiple_statements() -> ClickHouseError:
    """Return the error for a text of more than one statement, in ClickHouse's words."""
    return ClickHouseError("Syntax error (Multi-statements are not allowed).", Code.SYNTAX_ERROR)


def quote_string(value: str) -> str:
    """Return a value as a string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quote_identifier(name: str) -> str:
    """Return a name as a quoted identifier."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"

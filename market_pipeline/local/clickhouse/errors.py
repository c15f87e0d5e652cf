"""ClickHouse's errors: codes, HTTP statuses, and the block that ends a failed stream."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import IntEnum

_CODE = re.compile(r"Code: (\d+)")
_DOUBLED = re.compile(r"^Code: (\d+)\. DB::Exception: (Code: \1\. DB::Exception: )")


class Code(IntEnum):
    """The error codes that this server raises itself (ClickHouse: `system.errors`)."""

    UNSUPPORTED_METHOD = 1
    BAD_ARGUMENTS = 36
    NOT_IMPLEMENTED = 48
    SYNTAX_ERROR = 62
    UNKNOWN_FORMAT = 73
    UNKNOWN_COMPRESSION_METHOD = 89
    UNKNOWN_SETTING = 115
    SOCKET_TIMEOUT = 209
    NETWORK_ERROR = 210
    CANNOT_DECOMPRESS = 271
    TOO_MANY_BYTES = 307
    SESSION_NOT_FOUND = 372
    SESSION_IS_LOCKED = 373
    INVALID_SESSION_TIMEOUT = 374
    ABORTED = 236
    AUTHENTICATION_FAILED = 516
    UNKNOWN_EXCEPTION = 1002


_ASYNC_LOAD_CANCELED = "696"
"""Marks that a query did not wait for: no INSERT fails of those of others."""

_NAMES = {int(code): code.name for code in Code}
_STATUS = {
    403: (164, 497, Code.AUTHENTICATION_FAILED),
    404: (46, 47, 50, 60, 81, Code.UNKNOWN_SETTING, Code.SESSION_NOT_FOUND),
    400: (43, 53, Code.SYNTAX_ERROR, 456, 457),
    408: (159, Code.SOCKET_TIMEOUT),
    413: (Code.TOO_MANY_BYTES,),
    503: (202,),
}
_STATUS_OF_CODE = {int(code): status for status, codes in _STATUS.items() for code in codes}


class ClickHouseError(Exception):
    """An error as ClickHouse reports it: a code and a text that names both.

    `text` is the engine's own where there is one; a text without a code gets `code`, and UNKNOWN_EXCEPTION
    where nobody named one.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        text = _DOUBLED.sub(r"\2", text)
        named = _CODE.search(text)
        self.code = int(code or (named.group(1) if named else Code.UNKNOWN_EXCEPTION))
        if not named:
            name = _NAMES.get(self.code)
            text = f"Code: {self.code}. DB::Exception: {text}" + (f" ({name})" if name else "")
        self.text = text
        super().__init__(text)

    @property
    def status(self) -> int:
        """The HTTP status that ClickHouse gives this code, 500 for every other."""
        return _STATUS_OF_CODE.get(self.code, 500)

    def rendered(self, version: str) -> str:
        """Return the text as a client expects it, with the version of the engine at its end."""
        return self.text if "(version " in self.text else f"{self.text} (version {version} (chDB))"


def exception_block(tag: str, text: str) -> bytes:
    """Return the block that tells a client, in the midst of a stream, that the stream has failed.

    The status is long sent by then; the tag, announced in the header `X-ClickHouse-Exception-Tag`, keeps data that
    merely looks like an error apart from one.
    """
    text += "\n"
    length = len(text.encode(errors="replace"))
    block = f"\r\n__exception__\r\n{tag}\r\n{text}{length} {tag}\r\n__exception__\r\n"
    return block.encode(errors="replace")


def untold_error(before: Mapping[str, int], now: Sequence[Sequence[str]]) -> ClickHouseError | None:
    """Return the error that an INSERT met without telling, by what the engine's table of errors says of it.

    The engine keeps of each error the number of times and the last query. Where others met the same error since
    `before`, and the last was not this INSERT, it is blamed as well: one that is sent again does less harm than one
    that is lost.

    Args:
        before: how often each error had been met before, by its code.
        now: the table's lines after it: code, times, "1" if the last query to meet it was this one, message.
    """
    for code, value, mine, message in now:
        times = int(value) - before.get(code, 0)
        if times and mine == "1":
            return ClickHouseError(message, int(code))
        if times > 1 and code != _ASYNC_LOAD_CANCELED:
            return ClickHouseError(f"{message} (of this INSERT or of others at the same time)", int(code))
    return None

"""The fields of an envelope on the wire: numbers, times, texts and stages as NATS headers, read strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from market_pipeline.errors import UnreadableBatch
from market_pipeline.market.timeframes import from_ms, to_ms

MAX_BATCH_ID = 2**63 - 1
_VERSION = "Schema-Version"
_STAGE = "Stage-"
_STAGE_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
# Printable, and unchanged by NATS clients; all else is percent-encoded, `%` and spaces too.
_SAFE = "/:.,;+@=()[]!*"
_MAX_MS = to_ms(datetime.fromisoformat("9999-12-31T23:59:59+00:00"))
# From the epoch to where the stores' types end; neither bars nor ticks are of other times.
SPAN_MS = (0, to_ms(datetime.fromisoformat("2299-12-31T00:00:00+00:00")))
# Observations may be of long ago; each row is judged by itself.
EVER_MS = (to_ms(datetime.fromisoformat("0001-01-01T00:00:00+00:00")), _MAX_MS)


@dataclass(frozen=True)
class Fields:
    """The fields of one kind of envelope, by attribute: how they are written to headers and read back.

    version: the header Schema-Version; messages of another are refused, as what `kind` says that they are.
    texts, optional_texts: attribute to header; an optional one is left out where it is empty.
    numbers: attribute to header and both bounds. times: attribute to header; epoch ms on the wire, within `span_ms`.
    """

    version: int
    kind: str
    texts: Mapping[str, str]
    numbers: Mapping[str, tuple[str, int, int]]
    times: Mapping[str, str]
    optional_texts: Mapping[str, str] = field(default_factory=dict)
    span_ms: tuple[int, int] = SPAN_MS

    def write(self, envelope: object) -> dict[str, str]:
        """Return the fields of an envelope as headers, printable ASCII."""
        headers = {_VERSION: str(self.version)}
        for name, (header, _, _) in self.numbers.items():
            headers[header] = str(getattr(envelope, name))
        for name, header in self.times.items():
            headers[header] = str(to_ms(getattr(envelope, name)))
        for name, header in self.texts.items():
            headers[header] = text_field(getattr(envelope, name))
        for name, header in self.optional_texts.items():
            if value := getattr(envelope, name):
                headers[header] = text_field(value)
        return headers

    def read(self, headers: Mapping[str, str]) -> dict[str, Any]:
        """Return the attributes that the headers hold; headers of others are passed over.

        Raises:
            UnreadableBatch: a header is missing or wrong (reason `unreadable_envelope`), or the schema version is
                another (reason `schema_version`); the message names header and value.
        """
        version = read_number(headers, _VERSION, 0, 2**31)
        if version != self.version:
            raise UnreadableBatch(
                f"{self.kind} of schema version {version}: this program reads version {self.version}",
                reason="schema_version",
            )
        values: dict[str, Any] = {}
        for name, (header, low, high) in self.numbers.items():
            values[name] = read_number(headers, header, low, high)
        for name, header in self.times.items():
            values[name] = read_time(headers, header, self.span_ms)
        for name, header in self.texts.items():
            values[name] = read_text(headers, header)
        for name, header in self.optional_texts.items():
            values[name] = read_text(headers, header, required=False)
        return values


@dataclass(frozen=True)
class BatchFields(Fields):
    """Those of a batch that says how much it holds, from when to when, and who asked for it."""

    numbers: Mapping[str, tuple[str, int, int]] = field(
        default_factory=lambda: {
            "batch_id": ("Batch-Id", 1, MAX_BATCH_ID),
            "rows": ("Rows", 0, 2**32 - 1),
            "digest": ("Digest", 0, 2**64 - 1),
        }
    )
    times: Mapping[str, str] = field(default_factory=lambda: {"start_ts": "Start-Ts", "end_ts": "End-Ts"})
    optional_texts: Mapping[str, str] = field(
        default_factory=lambda: {"run_id": "Run-Id", "vendor_request_id": "Vendor-Request-Id"}
    )

    def read(self, headers: Mapping[str, str]) -> dict[str, Any]:
        """Return the attributes as `Fields.read` does; an end before the start is unreadable too."""
        values = super().read(headers)
        if values["end_ts"] < values["start_ts"]:
            raise unreadable("End-Ts lies before Start-Ts")
        return values


@lru_cache(maxsize=4096)  # of few collectors, sessions and symbols
def text_field(value: str) -> str:
    """Return a text as a header's value: printable ASCII, percent-encoded."""
    return quote(value, safe=_SAFE, errors="surrogatepass")


def stage_fields(stages: Mapping[str, int]) -> dict[str, str]:
    """Return the stages (epoch ms by name) as headers.

    Raises:
        ValueError: a name that is not small letters, digits and _.
    """
    for stage in stages:
        if not _STAGE_NAME.fullmatch(stage):
            raise ValueError(f"a stage is named by small letters, digits and _, not {stage!r}")
    return {f"{_STAGE}{stage}": str(at_ms) for stage, at_ms in stages.items()}


def read_stages(headers: Mapping[str, str]) -> dict[str, int]:
    """Read the stages back; raises UnreadableBatch for a time that is none."""
    return {
        header.removeprefix(_STAGE): read_number(headers, header, 0, _MAX_MS)
        for header in headers
        if header.startswith(_STAGE)
    }


def read_number(headers: Mapping[str, str], header: str, low: int, high: int) -> int:
    """Read a whole number in [low, high]; raises UnreadableBatch naming header and value."""
    text = _raw(headers, header)
    # int() also takes blanks, underscores and the digits of every script
    if not re.fullmatch(r"-?[0-9]{1,20}", text, re.ASCII):
        raise unreadable(f"{header} is {text[:40]!r}, must be a whole number")
    value = int(text)
    if not low <= value <= high:
        raise unreadable(f"{header} is {value}, must lie in {low} … {high}")
    return value


def read_time(headers: Mapping[str, str], header: str, span_ms: tuple[int, int] = SPAN_MS) -> datetime:
    """Read epoch ms as a UTC datetime; raises UnreadableBatch."""
    return from_ms(read_number(headers, header, *span_ms))


def read_text(headers: Mapping[str, str], header: str, *, required: bool = True) -> str:
    """Read a text; empty where it is missing and not required; raises UnreadableBatch."""
    if not required and header not in headers:
        return ""
    text = _raw(headers, header)
    if required and not text:
        raise unreadable(f"{header} is empty")
    try:
        return unquote(text, errors="strict")  # halves of surrogate pairs are no text to any store
    except UnicodeDecodeError:
        raise unreadable(f"{header} is {text[:40]!r}, which is not percent-encoded UTF-8") from None


def unreadable(message: str) -> UnreadableBatch:
    """Return the error of an envelope that cannot be read."""
    return UnreadableBatch(message, reason="unreadable_envelope")


def _raw(headers: Mapping[str, str], header: str) -> str:
    try:
        return headers[header]
    except KeyError:
        raise unreadable(f"the header {header} is missing") from None

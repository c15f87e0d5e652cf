"""Answers and the vendor's error shapes (notes and recorded answers of Polygon.io, now Massive)."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold what goes to the client; `rows` counts the results in the body, for the journal."""

    status: int
    body: bytes
    media: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    rows: int = 0

    @staticmethod
    def json(status: int, value: Any, *, rows: int = 0, headers: dict[str, str] | None = None) -> Answer:
        """Return a JSON answer."""
        return Answer(status, msgspec.json.encode(value), rows=rows, headers=headers or {})

    @staticmethod
    def text(status: int, text: str, *, media: str = "text/plain; charset=utf-8") -> Answer:
        """Return an answer that is no JSON."""
        return Answer(status, text.encode(), media=media)


def request_id() -> str:
    """Return a new request id in the vendor's form."""
    return uuid.uuid4().hex


def error(status: int, word: str, message: str) -> Answer:
    """Return the vendor's usual error."""
    return Answer.json(status, {"status": word, "request_id": request_id(), "error": message})


def unauthorized() -> Answer:
    """Return the answer to a wrong or missing key."""
    return error(401, "ERROR", "Unknown API Key")


def forbidden(*, legacy: bool = False) -> Answer:
    """Return the answer to a request beyond the plan; `legacy` has status "ERROR"."""
    text = "You are not entitled to this data. Please upgrade your plan at https://polygon.io/pricing"
    word = "ERROR" if legacy else "NOT_AUTHORIZED"
    return Answer.json(403, {"status": word, "request_id": request_id(), "message": text})


def rate_limited(*, body: bool = True, retry_after: int | None = None) -> Answer:
    """Return the answer to a request over the plan's rate."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if not body:
        return Answer(429, b"", headers=headers)
    text = (
        "You've exceeded the maximum requests per minute, please wait or upgrade your subscription to continue. "
        "https://polygon.io/pricing"
    )
    return Answer.json(429, {"status": "ERROR", "request_id": request_id(), "error": text}, headers=headers)

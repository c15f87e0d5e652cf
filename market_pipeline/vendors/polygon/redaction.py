"""Keep keys and query strings out of logs and messages."""

from __future__ import annotations

import logging
import re

_QUERY = re.compile(r"(https?://[^\s\"'?]+)\?[^\s\"'<>]*", re.IGNORECASE)
_KEY = re.compile(r"(api[_ ]?key[\"']?\s*[=:]\s*[\"']?)[^\s&\"',;]+", re.IGNORECASE)
_BEARER = re.compile(r"(bearer\s+)[^\s\"',;]+", re.IGNORECASE)
_LONGEST = 300


def redact(text: str, *secrets: str) -> str:
    """Remove query strings of URLs, values of `apiKey`, bearer tokens and the given secrets; cut long text."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = _BEARER.sub(r"\1***", _KEY.sub(r"\1***", _QUERY.sub(r"\1?***", text)))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


class RedactingFilter(logging.Filter):
    """Redact the records of a library's logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record's message; keep every record."""
        record.msg, record.args = redact(record.getMessage()), None
        return True


_FILTER = RedactingFilter()


def quiet_http_logs() -> None:
    """Redact what httpx logs: at INFO it prints the URL of every request."""
    logging.getLogger("httpx").addFilter(_FILTER)

"""The vendor's clock, as the headers of its answers tell it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime


def http_date(headers: Mapping[str, str]) -> datetime | None:
    """Return the vendor's time (UTC, whole seconds) when it answered; None where the headers do not say.

    That is the header Date, and where a cache has kept the answer since, Age seconds more.
    """
    try:
        stated = parsedate_to_datetime(headers["date"]) + timedelta(seconds=int(headers.get("age", "0")))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (stated if stated.tzinfo else stated.replace(tzinfo=UTC)).astimezone(UTC)

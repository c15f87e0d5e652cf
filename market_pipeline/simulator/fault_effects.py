"""What a fault does to an answer, in the shapes that the vendor (or a fault on the way) gives."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit

from market_pipeline.simulator.answers import Answer, error, forbidden, rate_limited, unauthorized
from market_pipeline.simulator.faults import Fault


def refusal(fault: Fault) -> Answer | None:
    """Return the answer that stands in the place of the real one, or None for a fault that gives no answer at all."""
    if fault.kind == "unauthorized":
        return unauthorized()
    if fault.kind == "forbidden":
        return forbidden(legacy=fault.legacy)
    if fault.kind == "not_found":
        return Answer.text(404, "404 page not found") if fault.plain else error(404, "NOT_FOUND", "Data not found.")
    if fault.kind == "rate_limited":
        return rate_limited(body=fault.body, retry_after=fault.retry_after)
    if fault.kind == "server_error":
        # A gateway's own page: no JSON, as a load balancer answers.
        return Answer.text(fault.status, f"<html><body><h1>{fault.status}</h1></body></html>", media="text/html")
    return None


def spoil(fault: Fault, page: dict[str, Any], *, url: str, first_url: str) -> None:
    """Change a decoded page in place."""
    if fault.kind == "null_results":
        _nothing(fault, page)
    elif fault.kind == "page_loop":
        if not fault.cycle:
            page["next_url"] = url
        elif url != first_url or not page.get("next_url"):
            page["next_url"] = first_url
    elif fault.kind == "foreign_next_url":
        parts = urlsplit(page["next_url"])
        page["next_url"] = urlunsplit(parts._replace(netloc=fault.host))
    elif fault.kind == "limit_reached_without_next_url":
        del page["next_url"]
    else:
        _spoil_rows(fault, page["results"])
        if "resultsCount" in page:
            page["resultsCount"] = page["count"] = len(page["results"])


def broken_json(body: bytes) -> bytes:
    """Return a body of which a JSON reader can make nothing."""
    middle = len(body) // 2
    return body[:middle] + b"<!-- upstream error -->" + body[middle + 1 : -1]


def _nothing(fault: Fault, page: dict[str, Any]) -> None:
    page.pop("next_url", None)
    page["results"] = None
    if fault.absent:
        del page["results"]
    for count in ("queryCount", "resultsCount", "count"):
        if count in page:
            page[count] = 0


def _spoil_rows(fault: Fault, rows: list[dict[str, Any]]) -> None:
    middle = len(rows) // 2
    row = rows[middle]
    if fault.kind == "duplicate_rows":
        rows.insert(middle + 1, dict(row))
    elif fault.kind == "unsorted_rows":
        rows[middle - 1], rows[middle] = row, rows[middle - 1]
    elif fault.kind == "missing_fields":
        for each in rows:
            for name in fault.fields:
                each.pop(name, None)
    elif fault.kind == "negative_price":
        row["l"] = -abs(row["l"])
    elif fault.kind == "high_below_low":
        row["h"] = row["l"] * 0.99
    elif fault.kind == "wrong_types":
        row["c"], row["o"] = str(row["c"]), None

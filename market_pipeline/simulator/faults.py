"""Faults on demand: which requests they strike, and how often. What they do is in `fault_effects`."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from market_pipeline.simulator.hashing import key, uniform

BeforeKind = Literal[
    "slow", "unauthorized", "forbidden", "not_found", "rate_limited", "server_error", "drop_connection"
]
PageKind = Literal[
    "null_results",
    "page_loop",
    "foreign_next_url",
    "limit_reached_without_next_url",
    "duplicate_rows",
    "unsorted_rows",
    "missing_fields",
    "negative_price",
    "high_below_low",
    "wrong_types",
]
BytesKind = Literal["invalid_json", "cut_body"]
Kind = Literal[BeforeKind, PageKind, BytesKind]

BEFORE: frozenset[str] = frozenset(get_args(BeforeKind))
PAGE: frozenset[str] = frozenset(get_args(PageKind))
BYTES: frozenset[str] = frozenset(get_args(BytesKind))


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Describe a fault.

    `ticker` (whole) and `path` (anywhere) are regular expressions; None matches all. Of the matching requests the first
    `skip` go free, then each is struck with `probability` (drawn from `seed`, so a run repeats), `times` times in all
    (None: for ever). Faults of a page strike only pages on which they show: rows to spoil, a next_url to drop.

    The rest says how, for the kinds that have a choice: `status` of server_error (500, 502, 503, 504); `body`: whether
    rate_limited answers with one; `plain`: not_found as text, not JSON; `legacy`: forbidden with status "ERROR";
    `retry_after` seconds with rate_limited; `delay` seconds of slow; `trickle`: slow within the body, not before it;
    `absent`: null_results leaves the field out; `cycle`: page_loop returns to the first page, not to itself; `host` of
    foreign_next_url; `fields` that missing_fields takes away.
    """

    kind: Kind
    ticker: str | None = None
    path: str | None = None
    times: int | None = None
    skip: int = 0
    probability: float = 1.0
    seed: int = 0
    status: int = 500
    body: bool = True
    plain: bool = True
    legacy: bool = False
    retry_after: int | None = None
    delay: float = 1.0
    trickle: bool = False
    absent: bool = False
    cycle: bool = False
    host: str = "attacker.invalid"
    fields: list[str] = msgspec.field(default_factory=lambda: ["vw", "n"])


@dataclass
class _Active:
    fault: Fault
    seen: int = 0
    used: int = 0
    first_url: str | None = None
    ticker: re.Pattern[str] | None = field(init=False)
    path: re.Pattern[str] | None = field(init=False)

    def __post_init__(self) -> None:
        self.ticker = re.compile(self.fault.ticker) if self.fault.ticker else None
        self.path = re.compile(self.fault.path) if self.fault.path else None

    def matches(self, ticker: str | None, path: str) -> bool:
        if self.ticker is not None and not (ticker and self.ticker.fullmatch(ticker)):
            return False
        return self.path is None or self.path.search(path) is not None

    def strikes(self) -> bool:
        """Count a match and tell whether it is struck."""
        if self.fault.times is not None and self.used >= self.fault.times:
            return False
        self.seen += 1
        if self.seen <= self.fault.skip:
            return False
        drawn = float(uniform(key("fault", self.fault.seed), np.array([self.seen]))[0])
        if drawn >= self.fault.probability:
            return False
        self.used += 1
        return True


class Faults:
    """Keep the active faults in the order in which they were added; safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: dict[int, _Active] = {}
        self._last = 0

    def add(self, fault: Fault) -> int:
        """Add a fault and return its number. Raises re.error for a bad pattern."""
        active = _Active(fault)
        with self._lock:
            self._last += 1
            self._active[self._last] = active
            return self._last

    def clear(self, number: int | None = None) -> None:
        """Remove one fault, or all."""
        with self._lock:
            if number is None:
                self._active.clear()
            else:
                self._active.pop(number, None)

    def listed(self) -> list[dict[str, Any]]:
        """Return each active fault with its number, the matches `seen` and the times `used`."""
        with self._lock:
            return [
                {"id": number, "seen": active.seen, "used": active.used, **msgspec.to_builtins(active.fault)}
                for number, active in self._active.items()
            ]

    def claim_before(self, ticker: str | None, path: str) -> list[Fault]:
        """Take the faults that strike a request before it is served: every delay, then the first of the others."""
        delays: list[Fault] = []
        refusals: list[Fault] = []
        with self._lock:
            for active in self._active.values():
                fault = active.fault
                if fault.kind not in BEFORE or not active.matches(ticker, path):
                    continue
                if fault.kind == "slow":
                    if active.strikes():
                        delays.append(fault)
                elif not refusals and active.strikes():
                    refusals.append(fault)
        return delays + refusals

    def wants_page(self, ticker: str | None, path: str) -> bool:
        """Tell whether any fault of a page could strike this request: only then is a page taken apart."""
        with self._lock:
            return any(a.fault.kind in PAGE and a.matches(ticker, path) for a in self._active.values())

    def claim_page(self, ticker: str | None, path: str, url: str, page: dict[str, Any]) -> list[tuple[Fault, str]]:
        """Take the faults that strike a page, each with the URL of the first page it struck."""
        struck: list[tuple[Fault, str]] = []
        with self._lock:
            for active in self._active.values():
                fault = active.fault
                if fault.kind not in PAGE or not active.matches(ticker, path) or not _shows(fault, page):
                    continue
                if active.strikes():
                    active.first_url = active.first_url or url
                    struck.append((fault, active.first_url))
        return struck

    def claim_bytes(self, ticker: str | None, path: str) -> Fault | None:
        """Take the first fault that strikes the bytes of an answer."""
        with self._lock:
            for active in self._active.values():
                if active.fault.kind in BYTES and active.matches(ticker, path) and active.strikes():
                    return active.fault
        return None


def _shows(fault: Fault, page: dict[str, Any]) -> bool:
    if fault.kind in ("limit_reached_without_next_url", "foreign_next_url"):
        return bool(page.get("next_url"))
    rows = page.get("results") or []
    return len(rows) > (fault.kind == "unsorted_rows")

"""Keys and their plans: who may ask, for which markets, how often."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import deque

import msgspec

from market_pipeline.simulator.tickers import Market


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hold what a key is entitled to: requests in any window (None: no limit; a minute unless scaled) and markets."""

    name: str = "unlimited"
    requests_per_minute: int | None = None
    window_s: float = 60.0
    markets: list[Market] | None = None


PLANS = {"free": Plan(name="free", requests_per_minute=5), "unlimited": Plan()}


class Plans:
    """Know the keys by a name that logs may show, and count each key's requests; safe for many threads."""

    def __init__(self, api_key: str, plan: Plan) -> None:
        self._lock = threading.Lock()
        self._keys = {"default": api_key}
        self._plans = {"default": plan}
        self._recent: dict[str, deque[float]] = {"default": deque()}

    def name_of(self, api_key: str | None) -> str | None:
        """Return the name of a key, or None for a wrong or missing one."""
        if not api_key:
            return None
        with self._lock:
            keys = list(self._keys.items())
        matches = [name for name, known in keys if hmac.compare_digest(known.encode(), api_key.encode())]
        return matches[0] if matches else None

    def allows(self, name: str, market: Market | None) -> bool:
        """Tell whether the key's plan includes the market (None: data of no market)."""
        with self._lock:
            markets = self._plans[name].markets
        return markets is None or market is None or market in markets

    def spend(self, name: str) -> bool:
        """Count a request against the key's sliding minute; False, and not counted, when it is over the plan."""
        now = time.monotonic()
        with self._lock:
            plan, recent = self._plans[name], self._recent[name]
            while recent and recent[0] <= now - plan.window_s:
                recent.popleft()
            if plan.requests_per_minute is not None and len(recent) >= plan.requests_per_minute:
                return False
            recent.append(now)
            return True

    def set_plan(self, name: str, plan: Plan) -> None:
        """Give a key another plan and a fresh minute. Raises KeyError for an unknown name."""
        with self._lock:
            if name not in self._keys:
                raise KeyError(f"no key is named {name!r}")
            self._plans[name], self._recent[name] = plan, deque()

    def add_key(self, plan: Plan) -> tuple[str, str]:
        """Make another key; return its name and the key."""
        with self._lock:
            name, api_key = f"key-{len(self._keys) + 1}", secrets.token_hex(16)
            self._keys[name], self._plans[name], self._recent[name] = api_key, plan, deque()
            return name, api_key

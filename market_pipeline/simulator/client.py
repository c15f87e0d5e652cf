"""A client of the simulator's control interface, for tests and demonstrations."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

import httpx
import msgspec

from market_pipeline.simulator.control import TOKEN_HEADER
from market_pipeline.simulator.journal import Entry
from market_pipeline.simulator.plans import PLANS, Plan
from market_pipeline.simulator.truth import to_ms


class ControlError(RuntimeError):
    """The simulator refuses a command; the message is its reason."""


class ControlClient:
    """Drive a running simulator. Times are aware datetimes; a range is [start, end), one minute without an end."""

    def __init__(self, base_url: str, token: str) -> None:
        # Loopback only: proxies from the environment have no part in this.
        self._http = httpx.Client(
            base_url=f"{base_url}/_control", headers={TOKEN_HEADER: token}, trust_env=False, timeout=30
        )

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def add_fault(self, kind: str, **options: Any) -> int:
        """Add a fault (`faults.Fault` names kinds and options) and return its number."""
        return int(self._send("POST", "/faults", {"kind": kind, **options})["id"])

    def clear_faults(self, number: int | None = None) -> None:
        """Remove one fault, or all."""
        self._send("DELETE", "/faults" if number is None else f"/faults/{number}")

    def faults(self) -> list[dict[str, Any]]:
        """Return the faults with their numbers, the matches `seen` and the times `used`."""
        return list(self._send("GET", "/faults"))

    def restate(self, ticker: str, minute: datetime, **values: float) -> None:
        """Give a minute other values: open, high, low, close, volume, vwap, trades."""
        self._send("POST", "/restate", {"ticker": ticker, "minute": to_ms(minute), "values": values})

    def withdraw(self, ticker: str, start: datetime, end: datetime | None = None) -> None:
        """Take back bars that were there; their ticks stay."""
        self._span("/withdraw", ticker, start, end)

    def remove(self, ticker: str, start: datetime, end: datetime | None = None) -> None:
        """Make the vendor lack minutes, bars and ticks."""
        self._span("/remove", ticker, start, end)

    def restore(self, ticker: str, start: datetime, end: datetime | None = None) -> None:
        """Return minutes to the truth."""
        self._span("/restore", ticker, start, end)

    def set_now(self, at: datetime | None, *, running: bool = False) -> None:
        """Set the vendor's clock, standing still or running; None: the wall clock."""
        self._send("POST", "/now", {"now": None if at is None else to_ms(at), "running": running})

    def set_settle(self, share: float) -> None:
        """Let this share of the bars younger than five minutes be unsettled."""
        self._send("POST", "/settle", {"share": share})

    def set_unknown(self, *tickers: str) -> None:
        """Make the vendor not know these tickers."""
        self._send("POST", "/unknown", {"tickers": tickers})

    def set_plan(self, plan: Plan | str, key: str = "default") -> None:
        """Give a key a plan, by name ("free", "unlimited") or in detail, and a fresh minute."""
        self._send("POST", "/plan", {"plan": _plan(plan), "key": key})

    def add_key(self, plan: Plan | str = "unlimited") -> tuple[str, str]:
        """Make another key; return its name and the key."""
        made = self._send("POST", "/keys", _plan(plan))
        return made["name"], made["api_key"]

    def requests(self, **equal: Any) -> list[Entry]:
        """Return the last requests, oldest first, of which the named fields are equal to the values."""
        entries = msgspec.convert(self._send("GET", "/requests"), list[Entry])
        return [entry for entry in entries if all(getattr(entry, name) == value for name, value in equal.items())]

    def stats(self) -> dict[str, Any]:
        """Return counts of requests and rows, by key and kind, and by status."""
        return dict(self._send("GET", "/stats"))

    def clear_requests(self) -> None:
        """Empty the journal and its counters."""
        self._send("POST", "/journal/clear")

    def reset(self) -> None:
        """Return to the truth, the wall clock, no faults and an empty journal; plans stay."""
        self._send("POST", "/reset")

    def _span(self, path: str, ticker: str, start: datetime, end: datetime | None) -> None:
        end = end or start + timedelta(minutes=1)
        self._send("POST", path, {"ticker": ticker, "start": to_ms(start), "end": to_ms(end)})

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else msgspec.json.encode(body)
        answer = self._http.request(method, path, content=content)
        value = msgspec.json.decode(answer.content)
        if answer.status_code != 200:
            raise ControlError(str(value["error"]))
        return value


def _plan(plan: Plan | str) -> Plan:
    return PLANS[plan] if isinstance(plan, str) else plan

"""A client of the simulator's control interface, for tests and demonstrations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import msgspec

from market_pipeline.simulator.control import TOKEN_HEADER
from market_pipeline.simulator.journal import Entry
from market_pipeline.simulator.plans import PLANS, Plan
from market_pipeline.simulator.tickers import Market, load_tickers
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

    def set_now(self, at: datetime | None, *, running: bool = False, speed: float = 1.0) -> None:
        """Set the vendor's clock, standing still or running at a speed; None: the wall clock.

        The stream sends the events that the clock then passes, none of those that the setting leaves out.
        """
        self._send("POST", "/now", {"now": None if at is None else to_ms(at), "running": running, "speed": speed})

    def now(self) -> datetime:
        """Return the vendor's present."""
        return _from_ms(self._send("GET", "/now")["now"])

    def advance(self, until: datetime, *, subscriptions: int = 1) -> None:
        """Begin to move the clock as fast as the stream's clients read; at `until` it stands.

        What is due up to and with `until` is sent. The clock stands still while fewer than so many subscriptions (a
        topic of a ticker each) are there; with 0 it does not wait for any. `wait_advanced` waits for the end.
        """
        self._send("POST", "/advance", {"until": to_ms(until), "subscriptions": subscriptions})

    def wait_advanced(self, timeout: float = 60.0) -> dict[str, Any]:
        """Wait until an advance has ended and all its events are written; return the stream's statistics.

        Raises TimeoutError. It blocks: beside a client in the same event loop call it in a thread.
        """
        until = time.monotonic() + timeout
        while (stats := self.stream_stats())["advancing"]:
            if time.monotonic() > until:
                raise TimeoutError("the simulator's clock is still being advanced")
            time.sleep(0.02)
        return stats

    def replay(self, ticker: str, path: Path) -> tuple[datetime, datetime, int]:
        """Let recorded ticks be the truth of their time; return its start and end, whole minutes, and their number.

        The parquet file has ts (Datetime, UTC) and either bid and ask (forex) or price and size. REST bars of this time
        are folds of these ticks (bids for forex). Lasts until `reset`.
        """
        made = self._send("POST", "/replay", {"ticker": ticker, "path": str(path.resolve())})
        return _from_ms(made["start"]), _from_ms(made["end"]), int(made["ticks"])

    def load(self, tickers: Sequence[str] | int, per_second: int, *, market: Market = "forex") -> list[str]:
        """Make so many ticks a second of each ticker from now on, open market or not; return the tickers.

        For a number of tickers that many are named, none of them a real one. A rate of 0 ends the load. REST serves the
        same ticks and their bars.
        """
        chosen = load_tickers(market, tickers) if isinstance(tickers, int) else list(tickers)
        self._send("POST", "/load", {"tickers": chosen, "per_second": per_second})
        return chosen

    def stream_fault(self, kind: str, **options: Any) -> int:
        """Add a fault of the stream (`stream.faults.StreamFault` names kinds and options) and return its number."""
        return int(self._send("POST", "/stream/faults", {"kind": kind, **options})["id"])

    def clear_stream_faults(self, number: int | None = None) -> None:
        """Remove one fault of the stream, or all."""
        self._send("DELETE", "/stream/faults" if number is None else f"/stream/faults/{number}")

    def stream_faults(self) -> list[dict[str, Any]]:
        """Return the stream's faults with their numbers, the events `seen` and the times `used`."""
        return list(self._send("GET", "/stream/faults"))

    def stream_settings(self, **settings: Any) -> None:
        """Set what is named of `stream.settings.StreamSettings`; what is not named takes its usual value."""
        self._send("POST", "/stream/settings", settings)

    def stream_stats(self) -> dict[str, Any]:
        """Return the stream's counters and state.

        `sessions` (opened, ended, auth_success, auth_failed, auth_timeout, max_connections, cut_off), `acknowledged`,
        `sent` (events written by lane, such as "C.EUR/USD"), `sent_total`, `lost` (events due to a subscriber and never
        written), `frames`, `bytes`, `open` sessions, live `subscriptions` by market, `now` in epoch ms, `advancing`.
        """
        return dict(self._send("GET", "/stream/stats"))

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
        """Return to the truth, the wall clock, no faults, no sessions and empty journals; plans stay."""
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


def _from_ms(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)

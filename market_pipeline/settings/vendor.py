"""The vendor: its REST interface and its streams."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from market_pipeline.settings.section import Section

VENDOR_HOSTS = ("api.polygon.io", "api.massive.com")
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def is_loopback(url: str) -> bool:
    """Tell whether an address is this machine's own, which no proxy of the environment may stand before."""
    return urlsplit(url).hostname in _LOOPBACK


class VendorSettings(Section):
    """The market data vendor: Polygon.io, now Massive, or the simulator that speaks like it.

    max_clock_ahead_s: answers are refused while this machine's clock is further ahead of the vendor's: a bar would be
    taken as settled before it is.
    """

    base_url: str = "https://api.polygon.io"
    api_key: SecretStr = SecretStr("")
    plan: Literal["free", "paid"] = "free"
    requests_per_minute: int | None = Field(default=None, ge=1, le=6000)
    rate_window_s: float = Field(default=60.0, gt=0)
    extra_hosts: tuple[str, ...] = ()
    timeout_s: float = Field(default=30.0, gt=0)
    max_attempts: int = Field(default=6, ge=1, le=20)
    backoff_initial_s: float = Field(default=0.5, ge=0)
    backoff_max_s: float = Field(default=30.0, ge=0)
    page_limit: int = Field(default=50_000, ge=1, le=50_000)
    max_clock_ahead_s: float = Field(default=10.0, ge=1.0)

    @field_validator("base_url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{value!r} is not an http(s) address")
        if parts.username or parts.password or parts.query:
            raise ValueError("the address must not carry a user, a password or a query: set api_key instead")
        return value.rstrip("/")

    @property
    def rate(self) -> int:
        """Requests allowed in one `rate_window_s`: the explicit setting, else the plan's."""
        if self.requests_per_minute is not None:
            return self.requests_per_minute
        return 5 if self.plan == "free" else 6000

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Host names, with the port where one is given, to which a `next_url` may lead."""
        return frozenset({urlsplit(self.base_url).netloc, *VENDOR_HOSTS, *self.extra_hosts})


class StreamSettings(Section):
    """How live quotes and trades are collected.

    url: ws or wss address of the vendor's streams; empty: derived from `vendor.base_url`.
    separator: between the currencies of a pair when subscribing; both are understood in what arrives.
    silence_s: without data for so long, in market hours, a connection is given up.
    mute_s: a symbol of which nothing came for so long after its subscription, in market hours, while others of the
        connection sent, is named as mute: the vendor acknowledges tickers that it does not know.
    cooldown_s: after the vendor said that the key has a connection already.
    stable_s: life of a connection after which the pauses between attempts begin small again.
    queue: ticks that wait in memory at most; more are dropped, counted, and their interval is recorded as lost.
    batch_ms, batch_ticks: a micro-batch is published after so long, or with so many ticks.
    heartbeat_s: the longest pause between two batches of a symbol while its market is open.
    lease_ttl_s: after so long without a sign of life another collector takes over.
    """

    url: str = ""
    separator: Literal["/", "-"] = "/"
    silence_s: float = Field(default=20.0, gt=0)
    mute_s: float = Field(default=600.0, gt=0)
    cooldown_s: float = Field(default=60.0, ge=0)
    stable_s: float = Field(default=10.0, ge=0)
    handshake_timeout_s: float = Field(default=10.0, gt=0)
    ack_timeout_s: float = Field(default=10.0, gt=0)
    backoff_initial_s: float = Field(default=0.5, gt=0)
    backoff_max_s: float = Field(default=30.0, gt=0)
    queue: int = Field(default=65_536, ge=1)
    batch_ms: float = Field(default=50.0, ge=0, le=1000)
    batch_ticks: int = Field(default=256, ge=1, le=4096)
    heartbeat_s: float = Field(default=1.0, gt=0)
    lease_ttl_s: float = Field(default=10.0, ge=1)

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in {"ws", "wss"} or not parts.hostname):
            raise ValueError(f"{value!r} is not a ws(s) address")
        if parts.username or parts.password or parts.query:
            raise ValueError("the address must not carry a user, a password or a query: set vendor.api_key instead")
        return value.rstrip("/")

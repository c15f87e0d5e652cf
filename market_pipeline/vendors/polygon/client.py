"""The client of Polygon.io, now Massive: what the rest of the system calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from types import TracebackType
from typing import TypeVar

import msgspec
import polars as pl
import structlog

from market_pipeline.breaker import Breakers
from market_pipeline.errors import BadRange, VendorBadAnswer, VendorRateLimited
from market_pipeline.settings import VendorSettings
from market_pipeline.vendors.base import MINUTE_SCHEMA, MinutePage, RangeRequest, RateGate, VendorInstrument
from market_pipeline.vendors.polygon.answers import Complaint, Subject, body_error
from market_pipeline.vendors.polygon.http import VendorHttp, VendorStats
from market_pipeline.vendors.polygon.plan import plan_requests
from market_pipeline.vendors.polygon.walk import TIMESPANS, Series, Walk

log = structlog.get_logger(__name__)

T = TypeVar("T")
PROBE_ATTEMPTS = 2
BREAKER = "vendor"


class MarketStatus(Complaint):
    """Which markets are open now. `exchanges` by code; `currencies` has `fx` and `crypto`."""

    market: str = ""
    server_time: datetime | None = msgspec.field(default=None, name="serverTime")
    exchanges: dict[str, str] = msgspec.field(default_factory=dict)
    currencies: dict[str, str] = msgspec.field(default_factory=dict)


def _now() -> datetime:
    return datetime.now(UTC)


class PolygonClient:
    """Ask the vendor for history and reference data.

    Use it as an async context manager. Every HTTP request, a retry too, passes `gate`. `stats` counts what was done.
    After too many requests that failed with 5xx, a time-out or a lost connection, all retries included, the breaker
    `vendor` opens: requests then fail at once, until one may try. A 429 is no outage, it is the plan's rate.
    """

    def __init__(
        self,
        settings: VendorSettings,
        gate: RateGate,
        clock: Callable[[], datetime] = _now,
        breakers: Breakers | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            breakers: those of the service or run, which outlive this client; default: its own.

        Raises:
            VendorAuthError: there is no key; the message names the setting.
        """
        self._settings = settings
        # What cannot be read comes from a server that is there.
        breaker = (breakers or Breakers()).of(BREAKER, answers=(VendorRateLimited, VendorBadAnswer))
        self._http = VendorHttp(settings, gate, clock, breaker)

    def __repr__(self) -> str:
        return f"PolygonClient({self._settings.base_url!r})"

    async def __aenter__(self) -> PolygonClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._http.close()

    @property
    def stats(self) -> VendorStats:
        """Counters since the client was made."""
        return self._http.stats

    def plan_requests(self, start: datetime, end: datetime) -> list[RangeRequest]:
        """Split [start, end), UTC, into requests of at most 50,000 minutes of wall time."""
        return plan_requests(start, end)

    async def minutes(
        self,
        instrument: VendorInstrument,
        start: datetime,
        end: datetime,
        *,
        expects: Callable[[RangeRequest], bool] | None = None,
    ) -> AsyncGenerator[MinutePage, None]:
        """Yield the minute bars of [start, end), UTC, ascending, as pages of the planned requests, in their order.

        A request without a bar yields one page with an empty frame. An empty answer is asked for again, twice, before
        it is believed, unless `expects` says that nothing is expected in the request's range (a weekend, say). While
        a page is decoded and used, the next one is fetched: so a few large calls are faster than many small ones.

        Raises:
            BadRange: the range cannot be.
            VendorError: after bounded retries, with the symbol and range of the request that failed.
        """
        walk = Walk(self._http, Series(instrument.vendor_ticker, instrument.symbol), expects)
        async with aclosing(walk.pages(self.plan_requests(start, end))) as pages:
            async for page in pages:
                yield page

    async def aggregates(
        self, ticker: str, multiplier: int, timespan: str, start: datetime, end: datetime
    ) -> pl.DataFrame:
        """Return the vendor's own bars of [start, end), UTC: columns `MINUTE_SCHEMA`, `ts` ascending.

        `timespan` is second, minute, hour, day, week or month. The vendor's days and weeks begin where it says: a
        first bar may begin before `start`. Rows that are no bars are left out, with a warning in the log.

        Raises:
            BadRange: the range or timespan cannot be.
            VendorError: after bounded retries.
        """
        if timespan not in TIMESPANS or multiplier < 1:
            raise BadRange(f"{multiplier} {timespan}: the vendor has {', '.join(TIMESPANS)}")
        if start.tzinfo is None or end.tzinfo is None or end <= start:
            raise BadRange(f"not a range of times with zones: {start} to {end}")
        walk = Walk(self._http, Series(ticker, ticker, multiplier, timespan))
        frames = [pl.DataFrame(schema=MINUTE_SCHEMA)]
        async with aclosing(walk.pages([RangeRequest(start, end)])) as pages:
            async for page in pages:
                frames.append(page.frame)
                if page.bad_rows:
                    log.warning("vendor_bad_rows", ticker=ticker, rows=len(page.bad_rows))
        return pl.concat(frames)

    async def market_status(self) -> MarketStatus:
        """Return which markets are open now."""
        return await self._get("market status", "/v1/marketstatus/now", MarketStatus)

    async def probe(self) -> float:
        """Send one cheap request with the key, and return the seconds it took, the wait at the gate left out.

        Raises:
            VendorAuthError: the vendor does not know the key; the message names the setting.
            VendorUnavailable: the vendor does not answer.
        """
        subject = Subject("probe", secret=self._settings.api_key.get_secret_value())
        answer = await self._http.get(
            subject, "/v1/marketstatus/now", lambda body: _read(subject, body, MarketStatus), attempts=PROBE_ATTEMPTS
        )
        return (answer.received_at - answer.sent_at).total_seconds()

    async def _get(self, what: str, path: str, kind: type[T]) -> T:
        subject = Subject(what, secret=self._settings.api_key.get_secret_value())
        return (await self._http.get(subject, path, lambda body: _read(subject, body, kind))).value


def _read(subject: Subject, body: bytes, kind: type[T]) -> T:
    try:
        value = msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise subject.error(VendorBadAnswer, f"{subject.what}: unreadable answer ({error})", status=200) from None
    if isinstance(value, Complaint) and (failure := body_error(subject, value)) is not None:
        raise failure
    return value

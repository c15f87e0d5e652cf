"""One request at a time: through the rate gate, with typed errors and bounded, jittered retries."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, TypeVar

import httpx
import stamina
import structlog

from market_pipeline.breaker import Breaker
from market_pipeline.errors import BreakerOpen, Transient, VendorError, VendorRateLimited, VendorUnavailable
from market_pipeline.settings import VendorSettings, is_loopback
from market_pipeline.vendors.base import RateGate
from market_pipeline.vendors.polygon.answers import Subject, cause_of, clock_error, status_error, transport_error
from market_pipeline.vendors.polygon.auth import BearerKey
from market_pipeline.vendors.polygon.redaction import quiet_http_logs

log = structlog.get_logger(__name__)

T = TypeVar("T")

# `timeout_s` bounds each wait for bytes; a server that drips them is ended after this many times `timeout_s`.
WHOLE_ANSWER_FACTOR = 4
# Servers commonly close idle connections after 5 s; one that closes while a request leaves costs a retry.
KEEPALIVE_S = 4.0


@dataclass
class VendorStats:
    """What a client did so far. `retries` counts by cause, `waited_s` is the time spent at the rate gate."""

    requests: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    empty_answers: int = 0
    pages: int = 0
    bytes: int = 0
    rows: int = 0
    bad_rows: int = 0
    duplicate_rows: int = 0
    outside_rows: int = 0
    waited_s: float = 0.0


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A good answer, read. `sent_at` (UTC) is the time just before the request that it answers was sent."""

    value: T
    sent_at: datetime
    received_at: datetime
    attempts: int


class VendorHttp:
    """Send GET requests to the vendor; one connection pool, closed by `close`.

    A request counts once for the breaker, after its own retries: a moment's outage that these outlast is none.
    """

    def __init__(
        self, settings: VendorSettings, gate: RateGate, clock: Callable[[], datetime], breaker: Breaker
    ) -> None:
        auth = BearerKey(settings.api_key)
        quiet_http_logs()
        self.settings = settings
        self.stats = VendorStats()
        self.breaker = breaker
        self._gate = gate
        self._clock = clock
        self._client = httpx.AsyncClient(
            base_url=settings.base_url,
            auth=auth,
            timeout=settings.timeout_s,
            follow_redirects=False,
            limits=httpx.Limits(keepalive_expiry=KEEPALIVE_S),
            headers={"User-Agent": "market-pipeline", "Accept": "application/json"},
            trust_env=not is_loopback(settings.base_url),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def get(
        self,
        subject: Subject,
        url: str,
        read: Callable[[bytes], T],
        *,
        params: Mapping[str, str] | None = None,
        attempts: int | None = None,
    ) -> Answer[T]:
        """Ask until `read` accepts the answer, up to `attempts` times (default: `max_attempts`).

        Every attempt passes the rate gate. Pauses between attempts grow from `backoff_initial_s` to `backoff_max_s`,
        half of each is jitter; a Retry-After that the vendor sends is waited for instead, unless it is longer than
        two rate windows: then there is no use in trying again.

        Raises:
            VendorError: the typed error of the last attempt; terminal ones at once. VendorUnavailable, without anything
                being sent, while the breaker is open: it says until when.
        """
        try:
            with self.breaker.attempt():
                return await self._ask(subject, url, read, params, attempts)
        except BreakerOpen as error:
            until = self._clock() + timedelta(seconds=error.retry_after)
            raise subject.error(
                VendorUnavailable,
                f"{subject.what}: not asked, the vendor is away; it is tried again from {until:%H:%M:%S} UTC on "
                f"(in {error.retry_after:.0f} s). It said last: {error.last_error}",
            ) from None

    async def _ask(
        self,
        subject: Subject,
        url: str,
        read: Callable[[bytes], T],
        params: Mapping[str, str] | None,
        attempts: int | None,
    ) -> Answer[T]:
        limit = attempts or self.settings.max_attempts
        made = 0

        def pause_before_retry(error: Exception) -> bool | float:
            pause = self._pause(error, made) if made < limit else None
            if pause is None or not isinstance(error, VendorError):
                return False
            cause = cause_of(error)
            self.stats.retries[cause] += 1
            log.warning(
                "vendor_retry",
                what=subject.what,
                symbol=subject.symbol,
                start=subject.start,
                end=subject.end,
                cause=cause,
                attempt=made,
                wait_s=round(pause, 3),
            )
            return pause

        async for trial in stamina.retry_context(on=pause_before_retry, attempts=limit, timeout=None):
            with trial:
                made += 1
                value, sent_at = await self._once(subject, url, read, params)
                return Answer(value, sent_at, self._clock(), made)
        raise AssertionError("stamina returns or raises")

    async def _once(
        self, subject: Subject, url: str, read: Callable[[bytes], T], params: Mapping[str, str] | None
    ) -> tuple[T, datetime]:
        self.stats.waited_s += await self._gate.acquire()
        self.stats.requests += 1
        whole = self.settings.timeout_s * WHOLE_ANSWER_FACTOR
        sent_at, granted = self._clock(), time.monotonic()
        try:
            async with asyncio.timeout(whole):
                response = await self._client.get(url, params=params)
        except (httpx.HTTPError, TimeoutError) as error:
            # `from None`: the library's error holds the request, and with it the key.
            timeout_s = whole if isinstance(error, TimeoutError) else self.settings.timeout_s
            raise transport_error(subject, error, timeout_s) from None
        finally:
            await self._gate.note_delay(time.monotonic() - granted)
        self.stats.bytes += len(response.content)
        wrong = status_error(subject, response.status_code, response.headers, response.content) or clock_error(
            subject, sent_at, response.headers, self.settings.max_clock_ahead_s
        )
        if wrong is not None:
            raise wrong
        return read(response.content), sent_at

    def _pause(self, error: Exception, made: int) -> float | None:
        if not (isinstance(error, VendorError) and isinstance(error, Transient)):
            return None
        settings = self.settings
        if isinstance(error, VendorRateLimited) and error.retry_after is not None:
            if error.retry_after > max(2 * settings.rate_window_s, settings.backoff_max_s):
                return None
            return error.retry_after + random.uniform(0, settings.backoff_initial_s)
        longest = min(settings.backoff_max_s, settings.backoff_initial_s * 2 ** (made - 1))
        return longest * random.uniform(0.5, 1.0)

"""Walk through the answers of planned requests, one page ahead of who reads them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

import polars as pl
import structlog

from market_pipeline.errors import VendorBadAnswer, VendorError
from market_pipeline.vendors.base import MinutePage, RangeRequest
from market_pipeline.vendors.polygon.answers import Subject
from market_pipeline.vendors.polygon.decode import Aggregates, Decoded, decode_rows, read_aggregates
from market_pipeline.vendors.polygon.http import Answer, VendorHttp
from market_pipeline.vendors.polygon.pages import PageGuard, next_link

log = structlog.get_logger(__name__)

# How often an empty success, or pages that cannot be, are asked for again before they are believed, or refused.
ASK_AGAIN = 2
SECOND_MS = 1000
# The shortest a window can be: the next page starts no earlier than this after the last bar.
TIMESPANS = {
    "second": SECOND_MS,
    "minute": 60 * SECOND_MS,
    "hour": 3600 * SECOND_MS,
    "day": 86_400 * SECOND_MS,
    "week": 7 * 86_400 * SECOND_MS,
    "month": 28 * 86_400 * SECOND_MS,
}


@dataclass(frozen=True)
class Series:
    """What is asked for: bars of one ticker."""

    ticker: str
    symbol: str
    multiplier: int = 1
    timespan: str = "minute"

    @property
    def step_ms(self) -> int:
        """The least distance between two bars."""
        return self.multiplier * TIMESPANS[self.timespan]

    @property
    def clipped(self) -> bool:
        """Whether bars begin within the range; a bar of a day or more may begin before the range that it covers."""
        return self.timespan in ("second", "minute", "hour")

    def subject(self, request: RangeRequest, secret: str) -> Subject:
        """Name a request of this series."""
        what = f"{self.multiplier} {self.timespan} aggregates of {self.ticker}"
        return Subject(what, self.symbol, request.start, request.end, secret)

    def url(self, start_ms: int, end_ms: int, limit: int) -> str:
        """Name the first page of [start, end), epoch milliseconds; the vendor's `to` is inclusive."""
        span = f"{self.multiplier}/{self.timespan}/{start_ms}/{end_ms - 1}"
        query = urlencode({"adjusted": "true", "sort": "asc", "limit": limit})
        return f"/v2/aggs/ticker/{quote(self.ticker, safe=':')}/range/{span}?{query}"


@dataclass(frozen=True)
class _Fetched:
    answer: Answer[Aggregates]
    attempts: int
    empty_confirmed: bool


class Walk:
    """Fetch the pages of planned requests in order; while one is decoded and used, the next is on its way."""

    def __init__(self, http: VendorHttp, series: Series, expects: Callable[[RangeRequest], bool] | None = None) -> None:
        self._http = http
        self._series = series
        self._expects = expects
        self._secret = http.settings.api_key.get_secret_value()
        self._ahead: tuple[str, asyncio.Task[_Fetched]] | None = None

    async def pages(self, requests: Sequence[RangeRequest]) -> AsyncGenerator[MinutePage, None]:
        """Yield every page of every request.

        Raises:
            VendorError: with the symbol and the range of the request that failed; pages before it were yielded.
        """
        try:
            for number, request in enumerate(requests):
                following = requests[number + 1] if number + 1 < len(requests) else None
                async for page in self._pages_of(request, following):
                    yield page
        finally:
            await self._drop_ahead()

    async def _pages_of(
        self, request: RangeRequest, following: RangeRequest | None
    ) -> AsyncGenerator[MinutePage, None]:
        subject = self._series.subject(request, self._secret)
        guard = PageGuard()
        end = _ms(request.end)
        at = _ms(request.start)
        url = self._url(at, end)
        page_no = asked_again = empty_links = 0
        last = False
        while not last:
            fetched = await self._take(url, request)
            envelope = fetched.answer.value
            link = self._link(subject, envelope)
            fault: VendorError | None = None
            cut = link is None and (envelope.queryCount or 0) >= self._http.settings.page_limit
            if link is not None and not guard.is_new(link):
                fault = subject.error(VendorBadAnswer, f"{subject.what}: pages go in a circle", status=200)
            elif link is not None:
                self._look_ahead(link, request)
            elif following is not None and not cut:
                self._look_ahead(self._url(_ms(following.start), _ms(following.end)), following)
            frame = pl.DataFrame()
            decoded: Decoded | None = None
            try:
                decoded = await asyncio.to_thread(decode_rows, subject, envelope)
                frame = self._clip(subject, guard, decoded, at, end)
            except VendorBadAnswer as error:
                fault, decoded = error, None
            reached = at if guard.last_ms is None else guard.last_ms + self._series.step_ms
            last = decoded is not None and (reached >= end or (fault is None and link is None and not cut))
            if decoded is not None and cut and not last and frame.is_empty():
                last = True  # nothing to continue from: what is missing shows in the gaps
            if envelope.empty and link is not None and not last:
                empty_links += 1
                if empty_links > ASK_AGAIN:
                    raise subject.error(VendorBadAnswer, f"{subject.what}: page after page is empty", status=200)
            if decoded is not None:
                page_no += 1
                yield self._page(request, fetched, frame, decoded, page_no, last)
            if last:
                return
            if fault is not None:
                asked_again += 1
                await self._before_asking_again(fault, asked_again)
                guard.restart()
            if fault is not None or link is None:
                at = reached
                url = self._url(at, end)
            else:
                url = link

    def _clip(self, subject: Subject, guard: PageGuard, decoded: Decoded, start: int, end: int) -> pl.DataFrame:
        ms = pl.col("ts").cast(pl.Int64)
        inside = decoded.frame.filter(ms < end, *([ms >= start] if self._series.clipped else []))
        outside = decoded.frame.height - inside.height
        if outside:
            self._http.stats.outside_rows += outside
            log.warning(
                "vendor_rows_outside", symbol=subject.symbol, start=subject.start, end=subject.end, rows=outside
            )
            if inside.is_empty():
                raise subject.error(VendorBadAnswer, f"{subject.what}: every bar lies outside the range", status=200)
        try:
            return guard.advance(inside)
        except ValueError as error:
            raise subject.error(VendorBadAnswer, f"{subject.what}: {error}", status=200) from None

    def _page(
        self, request: RangeRequest, fetched: _Fetched, frame: pl.DataFrame, decoded: Decoded, page_no: int, last: bool
    ) -> MinutePage:
        stats = self._http.stats
        stats.pages += 1
        stats.rows += frame.height
        stats.bad_rows += len(decoded.bad_rows)
        stats.duplicate_rows += decoded.duplicates
        return MinutePage(
            frame=frame,
            request=request,
            request_id=fetched.answer.value.request_id or "",
            fetched_at=fetched.answer.sent_at,
            received_at=fetched.answer.received_at,
            page_no=page_no,
            last=last,
            attempts=fetched.attempts,
            empty_confirmed=fetched.empty_confirmed,
            bad_rows=decoded.bad_rows,
        )

    def _url(self, start_ms: int, end_ms: int) -> str:
        return self._series.url(start_ms, end_ms, self._http.settings.page_limit)

    def _link(self, subject: Subject, envelope: Aggregates) -> str | None:
        if not envelope.next_url:
            return None
        settings = self._http.settings
        try:
            return next_link(envelope.next_url, settings.base_url, settings.allowed_hosts)
        except ValueError as error:
            raise subject.error(
                VendorBadAnswer, f"{subject.what}: {error}; vendor.extra_hosts allows more hosts", status=200
            ) from None

    async def _fetch(self, url: str, request: RangeRequest) -> _Fetched:
        subject, ticker = self._series.subject(request, self._secret), self._series.ticker
        expected = self._expects is None or self._expects(request)
        attempts = asked_again = 0
        while True:
            answer = await self._http.get(subject, url, lambda body: read_aggregates(subject, body, ticker))
            attempts += answer.attempts
            empty = answer.value.empty and not answer.value.next_url
            if empty:
                self._http.stats.empty_answers += 1
            if not empty or not expected or asked_again == ASK_AGAIN:
                return _Fetched(answer, attempts, empty_confirmed=empty and asked_again > 0)
            asked_again += 1
            log.info("vendor_empty", symbol=subject.symbol, start=subject.start, end=subject.end, asked=asked_again)
            await asyncio.sleep(self._short_pause())

    async def _before_asking_again(self, fault: VendorError, asked_again: int) -> None:
        await self._drop_ahead()
        if asked_again > ASK_AGAIN:
            raise fault
        self._http.stats.retries["bad_pages"] += 1
        pause = self._short_pause() * asked_again
        log.warning(
            "vendor_retry",
            what="pages",
            symbol=fault.symbol,
            start=fault.start,
            end=fault.end,
            cause="bad_pages",
            attempt=asked_again,
            wait_s=round(pause, 3),
            error=str(fault),
        )
        await asyncio.sleep(pause)

    def _short_pause(self) -> float:
        return self._http.settings.backoff_initial_s * random.uniform(0.5, 1.5)

    def _look_ahead(self, url: str, request: RangeRequest) -> None:
        self._ahead = (url, asyncio.create_task(self._fetch(url, request)))

    async def _take(self, url: str, request: RangeRequest) -> _Fetched:
        if self._ahead is not None and self._ahead[0] != url:
            await self._drop_ahead()
        if self._ahead is None:
            return await self._fetch(url, request)
        _, task = self._ahead
        try:
            return await task
        finally:
            if task.done():
                self._ahead = None

    async def _drop_ahead(self) -> None:
        if self._ahead is None:
            return
        (_, task), self._ahead = self._ahead, None
        task.cancel()
        # Its failure is nobody's: who needs that page asks for it again.
        with suppress(asyncio.CancelledError, Exception):
            await task


def _ms(time: datetime) -> int:
    return round(time.astimezone(UTC).timestamp() * 1000)

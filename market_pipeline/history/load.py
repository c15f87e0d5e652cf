"""Minutes from the vendor into the store: fetch by range, publish, drain, verify, and say what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b

import structlog

from market_pipeline.errors import (
    MarketPipelineError,
    RangeNotLoaded,
    StillSpooled,
    Terminal,
    VendorNotEntitled,
    VendorNotFound,
    VendorRequestRejected,
)
from market_pipeline.history.answer import Answer, keep_page, span_of
from market_pipeline.history.coverage import account_days
from market_pipeline.history.progress import Meter
from market_pipeline.history.reports import FailedRequest, SymbolLoad
from market_pipeline.history.runtime import Runtime
from market_pipeline.history.wanted import Interval, minutes_of, subtract
from market_pipeline.history.withdraw import MILLISECOND, withdraw
from market_pipeline.market.bars import VENDOR_HISTORICAL
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.sessions import calendar
from market_pipeline.stores.bars import BatchRange
from market_pipeline.stores.ledgers import VendorRequestRow
from market_pipeline.stores.vendor_requests import merged
from market_pipeline.vendors.base import RangeRequest
from market_pipeline.vendors.polygon import plan_requests

log = structlog.get_logger(__name__)

REQUESTS_IN_FLIGHT = 8
"""Requests of one symbol whose batches may be on the road at once, so that fetching never waits for verification."""
FAILURES_BEFORE_STOP = 3
"""Requests in a row that may fail after all their retries before a symbol is given up."""
REFUSALS = (VendorNotEntitled, VendorNotFound, VendorRequestRejected)
"""Terminal answers that concern the range asked for; others concern all that could be asked for."""


async def load_symbol(
    rt: Runtime,
    instrument: Instrument,
    intervals: Sequence[Interval],
    report: SymbolLoad,
    meter: Meter,
    *,
    source: str = VENDOR_HISTORICAL,
    only: Sequence[Interval] | None = None,
    past_refusals: bool = False,
) -> None:
    """Load one symbol's intervals; requests that a run of the same root has landed are skipped.

    Args:
        source: of the bars; a correction or a withdrawal concerns the bars of this source only.
        only: of the intervals, the minutes that are wanted; what else their requests bring is left out.
        past_refusals: go on to the next range when the vendor refuses one for good: it is then missing like others.

    Raises:
        RangeNotLoaded: naming the ranges that are missing; all others have landed.
        Terminal errors of the vendor, at once: those of a key that it does not know, whatever `past_refusals` says.
    """
    done = await asyncio.to_thread(rt.requests.done, rt.root_run_id, instrument.key)
    todo = subtract(intervals, done)
    requests = [r for start, end in todo for r in plan_requests(start, end)]
    skipped = minutes_of(intervals) - minutes_of(todo)
    if skipped:
        report.skipped_requests = len(done)
        log.info("checkpoint", symbol=instrument.symbol, minutes_skipped=skipped, requests_left=len(requests))
        meter.advance(instrument.symbol, minutes=skipped)

    newest = await _newest_revision(rt, instrument, requests, source)
    missing: list[tuple[str, datetime, datetime]] = []
    causes: list[str] = []
    road = asyncio.Semaphore(REQUESTS_IN_FLIGHT)
    landing: set[asyncio.Task[None]] = set()
    failures_in_a_row = 0

    async def land(answer: Answer) -> None:
        nonlocal failures_in_a_row
        try:
            await _land(rt, instrument, answer, newest, report)
            meter.advance(instrument.symbol, minutes=minutes_of([span_of(answer.request)]), rows=answer.rows)
            failures_in_a_row = 0
        except MarketPipelineError as error:
            await _note_failure(rt, instrument, answer.request, error, report)
            missing.append((instrument.symbol, *span_of(answer.request)))
            # Without NATS much fails at once: what says where the batches are goes first.
            causes.insert(0 if isinstance(error, StillSpooled) else len(causes), str(error))
            failures_in_a_row += 1
        finally:
            road.release()

    try:
        for number, request in enumerate(requests):
            await road.acquire()
            report.requests += 1
            try:
                answer = await _fetch(rt, instrument, Answer(request, source, only), newest, report)
            except MarketPipelineError as error:
                road.release()
                await _note_failure(rt, instrument, request, error, report)
                refused = past_refusals and isinstance(error, REFUSALS)
                if isinstance(error, Terminal) and not refused:
                    raise
                missing.append((instrument.symbol, *span_of(request)))
                causes.append(str(error))
                # The vendor is there: what it says of one range it need not say of the next.
                failures_in_a_row += not refused
            else:
                task = asyncio.create_task(land(answer))
                landing.add(task)
                task.add_done_callback(landing.discard)
            if failures_in_a_row >= FAILURES_BEFORE_STOP:
                missing += [(instrument.symbol, *span_of(r)) for r in requests[number + 1 :]]
                break
        await asyncio.gather(*landing)
    except BaseException:
        for task in landing:
            task.cancel()
        raise
    failed = [(start, end) for _, start, end in missing]
    # The answer for a minute that was not wanted has been dropped: it is none.
    accounted = merged(intervals if only is None else only)
    # An earlier run of the same root has counted its answers: each counts once.
    answered = subtract(accounted, [*failed, *done])
    report.account(*await asyncio.to_thread(account_days, rt, instrument, answered, subtract(accounted, answered)))
    if missing:
        raise RangeNotLoaded(_missing_sentence(instrument, missing, causes), missing)


async def _newest_revision(rt: Runtime, instrument: Instrument, requests: Sequence[RangeRequest], source: str) -> int:
    """Return the newest revision stored in all of the requests' ranges: what is fetched now must be later."""
    if not requests:
        return 0
    first, last = requests[0].start, requests[-1].end
    return await asyncio.to_thread(rt.facts.max_revision, instrument.key, "1m", source, first, last)


async def _fetch(rt: Runtime, instrument: Instrument, answer: Answer, newest: int, report: SymbolLoad) -> Answer:
    """Fetch one planned request into its answer, and encode its pages while the next one is on its way."""
    assert rt.vendor is not None
    start, end = span_of(answer.request)
    rules = calendar(instrument.calendar)

    def expects(part: RangeRequest) -> bool:
        return len(rules.expected_ms(part.start, part.end)) > 0

    async for page in rt.vendor.minutes(instrument, start, end, expects=expects):
        answer.pages += 1
        answer.attempts += page.attempts
        answer.vendor_request_id = page.request_id or answer.vendor_request_id
        answer.fetched_at = answer.fetched_at or page.fetched_at
        await keep_page(rt, instrument, page, newest, answer)
        if page.empty_confirmed:
            report.empty_answers += 1
    return answer


async def _land(rt: Runtime, instrument: Instrument, answer: Answer, newest: int, report: SymbolLoad) -> None:
    """Publish an answer, wait until it is stored and verified, and only then write the checkpoint."""
    written = await rt.tracker.store(answer.batches, counts=report.counts)
    start, end = span_of(answer.request)
    held = await rt.tracker.digest(BatchRange(instrument.key, "1m", answer.source, start, end - MILLISECOND))
    # Equal over the whole range: every bar is proven at once, and none is stored that the vendor no longer has.
    if held != (answer.rows, answer.digest):
        await rt.tracker.verify(written, counts=report.counts)
        await rt.tracker.settle(await withdraw(rt, instrument, answer, newest, report), counts=report.counts)
    report.counts.rejected += answer.bad_rows
    await rt.landed.ask(_request_row(rt, instrument, answer))


async def _note_failure(
    rt: Runtime, instrument: Instrument, request: RangeRequest, error: MarketPipelineError, report: SymbolLoad
) -> None:
    """Write the failed request to the ledger; the store may be what failed, so this may fail too."""
    report.failed.append(FailedRequest(*span_of(request), error))
    row = _request_row(rt, instrument, Answer(request), outcome="failed", error=str(error))
    try:
        await asyncio.to_thread(rt.requests.record, [row])
    except MarketPipelineError as second:
        log.warning("cannot_record_failure", symbol=instrument.symbol, error=str(second))


def _request_row(
    rt: Runtime, instrument: Instrument, answer: Answer, *, outcome: str | None = None, error: str = ""
) -> VendorRequestRow:
    start, end = span_of(answer.request)
    return VendorRequestRow(
        request_id=request_number(start, end),
        root_run_id=rt.root_run_id,
        run_id=rt.run_id,
        symbol=instrument.key,
        start_ts=start,
        end_ts=end,
        requested_at=answer.fetched_at or rt.clock(),
        outcome=outcome or ("empty" if answer.empty else "ok"),
        rows=answer.rows,
        bad_rows=answer.bad_rows,
        pages=answer.pages,
        attempts=answer.attempts,
        vendor_request_id=answer.vendor_request_id,
        error=error,
    )


def request_number(start: datetime, end: datetime) -> int:
    """Return the ledger's number of a range: the same for every attempt, so that a success replaces a failure."""
    text = f"{start.isoformat()}/{end.isoformat()}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _missing_sentence(instrument: Instrument, missing: list[tuple[str, datetime, datetime]], causes: list[str]) -> str:
    ranges = ", ".join(f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}" for _, start, end in missing[:5])
    more = f" and {len(missing) - 5} more ranges" if len(missing) > 5 else ""
    return (
        f"{instrument.symbol}: not loaded: {ranges}{more} UTC. Cause: {causes[0] if causes else 'earlier failures'}. "
        "What else was asked for has landed; retry the run to go on from there"
    )

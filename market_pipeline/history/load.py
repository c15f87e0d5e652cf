"""Minutes from the vendor into the store: fetch by range, publish, drain, verify, and say what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b

import polars as pl
import structlog

from market_pipeline.bus.envelope import EncodedBatch, encode_batches, now_ms
from market_pipeline.errors import HistoryError, MarketPipelineError, RangeNotLoaded, Terminal, VendorBadAnswer
from market_pipeline.history.coverage import account_days
from market_pipeline.history.progress import Meter
from market_pipeline.history.reports import SymbolLoad
from market_pipeline.history.runtime import Runtime
from market_pipeline.history.wanted import Interval, minutes_of, subtract
from market_pipeline.market.bars import BAR_SCHEMA, VENDOR_HISTORICAL, split_valid
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.sessions import calendar
from market_pipeline.stores.bars import BatchRange
from market_pipeline.stores.ledgers import VendorRequestRow
from market_pipeline.vendors.base import MinutePage, RangeRequest
from market_pipeline.vendors.polygon import plan_requests

log = structlog.get_logger(__name__)

MINUTE = timedelta(minutes=1)
MILLISECOND = timedelta(milliseconds=1)
REQUESTS_IN_FLIGHT = 8
"""Requests of one symbol whose batches may be on the road at once, so that fetching never waits for verification."""
FAILURES_BEFORE_STOP = 3
"""Requests in a row that may fail after all their retries before a symbol is given up."""
WITHDRAWAL_SHARE = 0.1
WITHDRAWAL_MINUTES = 60
"""A vendor that no longer has more bars than both of these of a range is not believed: that is an outage."""


@dataclass
class _Answer:
    """What one planned request brought."""

    request: RangeRequest
    batches: list[EncodedBatch] = field(default_factory=list)
    minutes: list[pl.Series] = field(default_factory=list)
    rows: int = 0
    digest: int = 0
    bad_rows: int = 0
    pages: int = 0
    attempts: int = 0
    empty: bool = True
    vendor_request_id: str = ""
    fetched_at: datetime | None = None


async def load_symbol(
    rt: Runtime, instrument: Instrument, intervals: Sequence[Interval], report: SymbolLoad, meter: Meter
) -> None:
    """Load one symbol's intervals; requests that a run of the same root has landed are skipped.

    Raises:
        RangeNotLoaded: naming the ranges that are missing; all others have landed.
        Terminal errors of the vendor, at once.
    """
    done = await asyncio.to_thread(rt.requests.done, rt.root_run_id, instrument.key)
    todo = subtract(intervals, done)
    requests = [r for start, end in todo for r in plan_requests(start, end)]
    skipped = minutes_of(intervals) - minutes_of(todo)
    if skipped:
        report.skipped_requests = len(done)
        log.info("checkpoint", symbol=instrument.symbol, minutes_skipped=skipped, requests_left=len(requests))
        meter.advance(instrument.symbol, minutes=skipped)

    newest = await _newest_revision(rt, instrument, requests)
    missing: list[tuple[str, datetime, datetime]] = []
    causes: list[str] = []
    road = asyncio.Semaphore(REQUESTS_IN_FLIGHT)
    landing: set[asyncio.Task[None]] = set()
    failures_in_a_row = 0

    async def land(answer: _Answer) -> None:
        nonlocal failures_in_a_row
        try:
            await _land(rt, instrument, answer, newest, report)
            meter.advance(instrument.symbol, minutes=minutes_of([_span(answer.request)]), rows=answer.rows)
            failures_in_a_row = 0
        except MarketPipelineError as error:
            await _note_failure(rt, instrument, answer.request, error)
            missing.append((instrument.symbol, *_span(answer.request)))
            causes.append(str(error))
            failures_in_a_row += 1
        finally:
            road.release()

    try:
        for number, request in enumerate(requests):
            await road.acquire()
            report.requests += 1
            try:
                answer = await _fetch(rt, instrument, request, newest, report)
            except MarketPipelineError as error:
                road.release()
                await _note_failure(rt, instrument, request, error)
                if isinstance(error, Terminal):
                    raise
                missing.append((instrument.symbol, *_span(request)))
                causes.append(str(error))
                failures_in_a_row += 1
            else:
                task = asyncio.create_task(land(answer))
                landing.add(task)
                task.add_done_callback(landing.discard)
            if failures_in_a_row >= FAILURES_BEFORE_STOP:
                missing += [(instrument.symbol, *_span(r)) for r in requests[number + 1 :]]
                break
        await asyncio.gather(*landing)
    except BaseException:
        for task in landing:
            task.cancel()
        raise
    failed = [(start, end) for _, start, end in missing]
    report.days, report.gaps = await asyncio.to_thread(
        account_days, rt, instrument, subtract(intervals, failed), failed
    )
    if report.days.height:
        held = report.days.filter(pl.col("rows") > 0)["date"]
        report.first_day, report.last_day = (held[0], held[-1]) if len(held) else (None, None)
    if missing:
        raise RangeNotLoaded(_missing_sentence(instrument, missing, causes), missing)


async def _newest_revision(rt: Runtime, instrument: Instrument, requests: Sequence[RangeRequest]) -> int:
    """Return the newest revision stored in all of the requests' ranges: what is fetched now must be later."""
    if not requests:
        return 0
    first, last = requests[0].start, requests[-1].end
    return await asyncio.to_thread(rt.facts.max_revision, instrument.key, "1m", VENDOR_HISTORICAL, first, last)


async def _fetch(
    rt: Runtime, instrument: Instrument, request: RangeRequest, newest: int, report: SymbolLoad
) -> _Answer:
    """Fetch one planned request, and encode its pages while the next one is on its way."""
    assert rt.vendor is not None
    start, end = _span(request)
    answer = _Answer(request)
    rules = calendar(instrument.calendar)

    def expects(part: RangeRequest) -> bool:
        return len(rules.expected_ms(part.start, part.end)) > 0

    async for page in rt.vendor.minutes(instrument, start, end, expects=expects):
        answer.pages += 1
        answer.attempts += page.attempts
        answer.vendor_request_id = page.request_id or answer.vendor_request_id
        answer.fetched_at = answer.fetched_at or page.fetched_at
        await _keep_page(rt, instrument, page, newest, answer)
        if page.empty_confirmed:
            report.empty_answers += 1
    return answer


async def _keep_page(rt: Runtime, instrument: Instrument, page: MinutePage, newest: int, answer: _Answer) -> None:
    """Turn a page into batches; rows that are no bars are dead-lettered alone and counted."""
    bars = page_to_bars(page, instrument.key, newest_revision=newest, settle=rt.settings.history.settle)
    good, bad = split_valid(bars)
    bad_rows = [(row.row, row.reason) for row in page.bad_rows]
    bad_rows += [(row.drop("reason").write_ndjson().strip(), str(row["reason"][0])) for row in bad.iter_slices(1)]
    if bad_rows:
        answer.bad_rows += len(bad_rows)
        await rt.bus.bury_vendor_rows(
            bad_rows, symbol=instrument.key, correlation_id=rt.run_id, request_id=page.request_id
        )
    if good.height == 0:
        return
    answer.empty = False
    answer.rows += good.height
    answer.minutes.append(good["ts"])
    batches = await asyncio.to_thread(
        encode_batches,
        good,
        correlation_id=rt.run_id,
        run_id=rt.run_id,
        vendor_request_id=page.request_id or "",
        stages={"fetched": _ms(page.fetched_at), "received": _ms(page.received_at), "decoded": now_ms()},
    )
    answer.digest = (answer.digest + sum(batch.headers.digest for batch in batches)) % 2**64
    answer.batches += batches


def page_to_bars(page: MinutePage, key: str, *, newest_revision: int, settle: timedelta) -> pl.DataFrame:
    """Return a page's closed minutes as BAR_SCHEMA rows of the source vendor_historical.

    A bar is complete if its window ended at least `settle` before the request was sent; a window that had not ended
    by then is no bar yet and is left out. The revision is the time of the fetch, or one past the newest stored.
    """
    fetched = page.fetched_at
    revision = max(_ms(fetched), newest_revision + 1)
    return (
        page.frame.filter(pl.col("ts") <= fetched - MINUTE)
        .with_columns(
            symbol=pl.lit(key),
            timeframe=pl.lit("1m"),
            source=pl.lit(VENDOR_HISTORICAL),
            origin=pl.lit(""),
            complete=pl.col("ts") <= fetched - MINUTE - settle,
            revision=pl.lit(revision, dtype=pl.UInt64),
            is_deleted=pl.lit(0, dtype=pl.UInt8),
        )
        .select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())
    )


async def _withdraw(
    rt: Runtime, instrument: Instrument, answer: _Answer, newest: int, report: SymbolLoad
) -> list[EncodedBatch]:
    """Return tombstones for stored bars that the vendor, asked twice, no longer has.

    Raises:
        VendorBadAnswer: far more bars are gone than a correction takes; nothing is withdrawn.
    """
    assert rt.vendor is not None
    if newest == 0 or answer.fetched_at is None:
        return []
    start, end = _span(answer.request)
    stored = await asyncio.to_thread(
        rt.bars.stored_rows, instrument.key, "1m", VENDOR_HISTORICAL, start, end - MILLISECOND
    )
    gone = stored.filter(~pl.col("ts").is_in(_joined(answer.minutes).implode()))
    if gone.height == 0:
        return []
    if gone.height > max(WITHDRAWAL_MINUTES, WITHDRAWAL_SHARE * stored.height):
        raise VendorBadAnswer(
            f"the answer lacks {gone.height} of {stored.height} bars that are stored: more than a correction takes, "
            "so nothing was withdrawn",
            symbol=instrument.symbol,
            start=start,
            end=end,
        )
    again: list[pl.Series] = []
    fetched = answer.fetched_at
    first, last = gone["ts"].min(), gone["ts"].max()
    assert isinstance(first, datetime)
    assert isinstance(last, datetime)
    report.requests += 1
    async for page in rt.vendor.minutes(instrument, first, last + MINUTE):
        again.append(page.frame["ts"])
        fetched = page.fetched_at
    gone = gone.filter(~pl.col("ts").is_in(_joined(again).implode()))
    if gone.height == 0:
        return []
    log.info("withdrawn", symbol=instrument.symbol, bars=gone.height, first=str(first), last=str(last))
    zero = [pl.lit(0.0).alias(name) for name in ("open", "high", "low", "close", "volume")]
    tombstones = gone.with_columns(
        *zero,
        vwap=pl.lit(None, dtype=pl.Float64),
        trades=pl.lit(0, dtype=pl.UInt32),
        revision=pl.lit(max(_ms(fetched), newest + 1), dtype=pl.UInt64),
        is_deleted=pl.lit(1, dtype=pl.UInt8),
    ).select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())
    return await asyncio.to_thread(
        encode_batches,
        tombstones,
        correlation_id=rt.run_id,
        run_id=rt.run_id,
        vendor_request_id=answer.vendor_request_id,
        stages={"fetched": _ms(fetched), "decoded": now_ms()},
    )


async def _land(rt: Runtime, instrument: Instrument, answer: _Answer, newest: int, report: SymbolLoad) -> None:
    """Publish an answer, wait until it is stored and verified, and only then write the checkpoint."""
    written = await rt.tracker.store(answer.batches, counts=report.counts)
    start, end = _span(answer.request)
    held = await rt.tracker.digest(BatchRange(instrument.key, "1m", VENDOR_HISTORICAL, start, end - MILLISECOND))
    # Equal over the whole range: every bar is proven at once, and none is stored that the vendor no longer has.
    if held != (answer.rows, answer.digest):
        await rt.tracker.verify(written, counts=report.counts)
        await rt.tracker.settle(await _withdraw(rt, instrument, answer, newest, report), counts=report.counts)
    report.counts.rejected += answer.bad_rows
    await rt.landed.ask(_request_row(rt, instrument, answer))


async def _note_failure(rt: Runtime, instrument: Instrument, request: RangeRequest, error: MarketPipelineError) -> None:
    """Write the failed request to the ledger; the store may be what failed, so this may fail too."""
    row = _request_row(rt, instrument, _Answer(request), outcome="failed", error=str(error))
    try:
        await asyncio.to_thread(rt.requests.record, [row])
    except MarketPipelineError as second:
        log.warning("cannot_record_failure", symbol=instrument.symbol, error=str(second))


def _request_row(
    rt: Runtime, instrument: Instrument, answer: _Answer, *, outcome: str | None = None, error: str = ""
) -> VendorRequestRow:
    start, end = _span(answer.request)
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


def _span(request: RangeRequest) -> Interval:
    return request.start, request.end


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _joined(parts: list[pl.Series]) -> pl.Series:
    return pl.concat(parts) if parts else pl.Series("ts", [], dtype=BAR_SCHEMA["ts"])


__all__ = ["HistoryError", "load_symbol", "page_to_bars"]

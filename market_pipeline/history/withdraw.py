"""Bars that the vendor no longer has: asked for twice, bounded, and only then withdrawn."""

from __future__ import annotations

import asyncio
from datetime import datetime

import polars as pl
import structlog

from market_pipeline.bus.envelope import EncodedBatch, encode_batches, now_ms
from market_pipeline.errors import VendorBadAnswer
from market_pipeline.history.answer import MINUTE, Answer, span_of
from market_pipeline.history.reports import SymbolLoad
from market_pipeline.history.runtime import Runtime
from market_pipeline.market.bars import BAR_SCHEMA
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import MILLISECOND, to_ms

log = structlog.get_logger(__name__)

WITHDRAWAL_SHARE = 0.1
WITHDRAWAL_MINUTES = 60
"""A vendor that no longer has more bars than both of these of a range is not believed: that is an outage."""


async def withdraw(
    rt: Runtime, instrument: Instrument, answer: Answer, newest: int, report: SymbolLoad
) -> list[EncodedBatch]:
    """Return tombstones for stored bars of the answer's own source that the vendor, asked twice, no longer has.

    Raises:
        VendorBadAnswer: far more bars are gone than a correction takes; nothing is withdrawn.
    """
    assert rt.vendor is not None
    if newest == 0 or answer.fetched_at is None:
        return []
    start, end = span_of(answer.request)
    stored = await asyncio.to_thread(rt.bars.stored_rows, instrument.key, "1m", answer.source, start, end - MILLISECOND)
    gone = stored.filter(~pl.col("ts").is_in(joined(answer.minutes).implode()))
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
    gone = gone.filter(~pl.col("ts").is_in(joined(again).implode()))
    if gone.height == 0:
        return []
    log.info("withdrawn", symbol=instrument.symbol, bars=gone.height, first=str(first), last=str(last))
    zero = [pl.lit(0.0).alias(name) for name in ("open", "high", "low", "close", "volume")]
    tombstones = gone.with_columns(
        *zero,
        vwap=pl.lit(None, dtype=pl.Float64),
        trades=pl.lit(0, dtype=pl.UInt32),
        revision=pl.lit(max(to_ms(fetched), newest + 1), dtype=pl.UInt64),
        is_deleted=pl.lit(1, dtype=pl.UInt8),
    ).select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())
    return await asyncio.to_thread(
        encode_batches,
        tombstones,
        correlation_id=rt.run_id,
        run_id=rt.run_id,
        vendor_request_id=answer.vendor_request_id,
        stages={"fetched": to_ms(fetched), "decoded": now_ms()},
    )


def joined(parts: list[pl.Series]) -> pl.Series:
    """Return the minutes of several pages as one series."""
    return pl.concat(parts) if parts else pl.Series("ts", [], dtype=BAR_SCHEMA["ts"])

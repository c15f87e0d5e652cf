"""What one planned request brought: its pages as bars, and as batches that are ready to be published."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from market_pipeline.bus.envelope import EncodedBatch, encode_batches, now_ms
from market_pipeline.history.runtime import Runtime
from market_pipeline.history.wanted import Interval
from market_pipeline.market.bars import BAR_SCHEMA, VENDOR_HISTORICAL, split_valid
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import MINUTE, to_ms
from market_pipeline.stores.vendor_requests import merged
from market_pipeline.vendors.base import MinutePage, RangeRequest


@dataclass
class Answer:
    """What one planned request brought.

    source: of the bars that are made of it. only: the minutes to be kept, where not all of the request's are wanted;
    `minutes` are all that the vendor has, `rows`, `digest` and `batches` those that are kept.
    """

    request: RangeRequest
    source: str = VENDOR_HISTORICAL
    only: Sequence[Interval] | None = None
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


def span_of(request: RangeRequest) -> Interval:
    """Return the request's range, half-open."""
    return request.start, request.end


async def keep_page(rt: Runtime, instrument: Instrument, page: MinutePage, newest: int, answer: Answer) -> None:
    """Turn a page into batches; rows that are no bars are dead-lettered alone and counted."""
    bars = page_to_bars(
        page, instrument.key, newest_revision=newest, settle=rt.settings.history.settle, source=answer.source
    )
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
    answer.minutes.append(good["ts"])
    if answer.only is not None:
        good = good.filter(inside(good["ts"], answer.only))
    if good.height == 0:
        return
    answer.rows += good.height
    batches = await asyncio.to_thread(
        encode_batches,
        good,
        correlation_id=rt.run_id,
        run_id=rt.run_id,
        vendor_request_id=page.request_id or "",
        stages={"fetched": to_ms(page.fetched_at), "received": to_ms(page.received_at), "decoded": now_ms()},
    )
    answer.digest = (answer.digest + sum(batch.headers.digest for batch in batches)) % 2**64
    answer.batches += batches


def inside(ts: pl.Series, intervals: Sequence[Interval]) -> pl.Series:
    """Return (Boolean) which times lie in one of the intervals."""
    at = ts.dt.epoch("ms").to_numpy()
    spans = merged(intervals)
    starts, ends = (np.array([to_ms(span[i]) for span in spans], dtype=np.int64) for i in (0, 1))
    last = np.searchsorted(starts, at, side="right") - 1  # the last interval that has begun by then
    return pl.Series((last >= 0) & (at < np.append(ends, 0)[last]), dtype=pl.Boolean)


def page_to_bars(
    page: MinutePage, key: str, *, newest_revision: int, settle: timedelta, source: str = VENDOR_HISTORICAL
) -> pl.DataFrame:
    """Return a page's closed minutes as BAR_SCHEMA rows of the source.

    A bar is complete if its window ended at least `settle` before the request was sent; a window that had not ended
    by then is no bar yet and is left out. The revision is the time of the fetch, or one past the newest stored.
    """
    fetched = page.fetched_at
    revision = max(to_ms(fetched), newest_revision + 1)
    return (
        page.frame.filter(pl.col("ts") <= fetched - MINUTE)
        .with_columns(
            symbol=pl.lit(key),
            timeframe=pl.lit("1m"),
            source=pl.lit(source),
            origin=pl.lit(""),
            complete=pl.col("ts") <= fetched - MINUTE - settle,
            revision=pl.lit(revision, dtype=pl.UInt64),
            is_deleted=pl.lit(0, dtype=pl.UInt8),
        )
        .select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())
    )

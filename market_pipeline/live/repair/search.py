"""Where live time lacks minutes, in the gap ledger: what to ask for, and what is settled. Blocking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta

import polars as pl

from market_pipeline.bus.losses import LossInterval
from market_pipeline.history.coverage import due_until
from market_pipeline.history.runtime import Runtime
from market_pipeline.live.repair.losses import whole
from market_pipeline.market.gaps import classify, lacking_minutes, runs
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.sessions import calendar
from market_pipeline.market.timeframes import midnight
from market_pipeline.settings import Settings
from market_pipeline.stores.gap_merge import OPEN
from market_pipeline.stores.vendor_requests import Interval, merged

BEFORE = timedelta(days=35)
"""How far before the look back the end of history is looked for: what is older the daily monitor finds."""
SHARE_OF_RATE = 0.5


def end_of_history(rt: Runtime, instrument: Instrument, before: datetime) -> datetime:
    """Return the day of the last complete minute before a moment, or the moment: there the seam begins."""
    days = rt.facts.counts_by_day(instrument.key, "1m", before - BEFORE, before)
    last = days.filter(pl.col("complete_rows") > 0)["date"].max()
    return midnight(last) if isinstance(last, date) else before


def asks_apart(settings: Settings, symbols: int) -> timedelta:
    """Return the least time between two requests for one symbol: settle, or more where the plan's rate is low.

    All symbols together take half of the rate at most; the rest is left to loads.
    """
    vendor = settings.vendor
    seconds = vendor.rate_window_s * symbols / (vendor.rate * SHARE_OF_RATE)
    return max(settings.history.settle, timedelta(seconds=seconds))


def search(
    rt: Runtime, instrument: Instrument, span: Interval, losses: Sequence[Interval], now: datetime
) -> list[Interval]:
    """Bring the ledger into agreement with what a span lacks; return the open gaps that are due to be asked for.

    A minute is lacking if its market was open and no complete bar of it wins. Its cause is `lost` where `losses` touch
    it; `pending_settle` where it is not due yet, or has a bar that is not complete; else `not_loaded`. Due are minutes
    older than settle and lateness that the vendor was not asked for within the last `lateness`: its bar may be late;
    of these `worth_asking` chooses.
    """
    start, end = span
    history = rt.settings.history
    due = due_until(now, history)
    present = rt.bars.winners(instrument.key, "1m", start, end, ["ts", "complete"])
    missing, incomplete = lacking_minutes(present, calendar(instrument.calendar), start, end)
    pending = runs(incomplete).select("start", "end").rows()
    if due < end:
        pending.append((due, end))
    lacking = classify(
        pl.concat([missing, incomplete]).sort(), now=now, settle=history.settle, lost=losses, pending=pending
    )
    rt.gaps.sync(instrument.key, start, end, lacking, now=now)
    if due <= start:
        return []
    table = rt.gaps.table([instrument.key], start, end, states=(OPEN,))
    bounds = pl.col("start_ts", "end_ts")
    again = table.filter(
        pl.col("start_ts") < due, pl.col("last_attempt").is_null() | (pl.col("last_attempt") <= now - history.lateness)
    )
    wanted = [(max(a, start), min(b, due)) for a, b in again.select(bounds).rows()]
    return worth_asking(wanted, merged(table.select(bounds).rows()), due, history.settle)


def worth_asking(
    wanted: Sequence[Interval], gaps: Sequence[Interval], due: datetime, enough: timedelta
) -> list[Interval]:
    """Return what of the wanted intervals, all before `due`, is to be asked for now.

    `gaps`: what is lacking, whole. The seam falls due minute by minute: of a gap that reaches beyond `due` nothing is
    asked for until `enough` of it has come together.
    """
    growing = next((gap for gap in gaps if gap[0] < due < gap[1]), None)
    if growing is None:
        return list(wanted)
    inside = [one for one in wanted if one[0] >= growing[0]]
    if not inside or due - inside[0][0] >= enough:
        return list(wanted)
    return [one for one in wanted if one[0] < growing[0]]


def settled(losses: Iterable[LossInterval], still_open: pl.DataFrame, due: datetime) -> list[LossInterval]:
    """Return the losses of which every minute is due and none is in an open gap (a table of GapLedger) any more."""
    gone: list[LossInterval] = []
    for loss in losses:
        start, end = whole(loss.start, loss.end)
        touching = (pl.col("symbol") == loss.symbol) & (pl.col("start_ts") < end) & (pl.col("end_ts") > start)
        if end <= due and still_open.filter(touching).is_empty():
            gone.append(loss)
    return gone

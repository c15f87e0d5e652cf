"""What the partitions that a repair touched hold as a whole: it asked for some minutes of them only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import TYPE_CHECKING

import polars as pl

from market_pipeline.market.instruments import Instruments
from market_pipeline.market.timeframes import midnight
from market_pipeline.orchestration.assets.derived import DAILY_DERIVED, WEEKLY
from market_pipeline.orchestration.partitions import sunday_of
from market_pipeline.orchestration.wanted import ranges_of
from market_pipeline.settings import HistorySettings

if TYPE_CHECKING:
    from market_pipeline.history.reports import RepairReport
    from market_pipeline.stores import Stores


def of_whole_days(
    report: RepairReport,
    changed: Mapping[str, Sequence[date]],
    stores: Stores,
    instruments: Instruments,
    settings: HistorySettings,
    now: datetime,
) -> RepairReport:
    """Return the report with the days of its minutes and derived bars counted whole, as the store has them.

    `changed`: the days by symbol key that got minutes which were missing.

    Raises:
        StoreError: the store cannot be asked.
    """
    from market_pipeline.history.coverage import whole_days

    symbols = dict(report.load.symbols)
    derived = dict(report.derived.days)
    for key, days in changed.items():
        if key in symbols:
            minutes = whole_days(stores.bars, instruments.get(key), ranges_of(days), settings, now)
            symbols[key] = replace(symbols[key], days=minutes)
        for code in DAILY_DERIVED:
            derived[(key, code)] = _counted(stores, key, code, days)
        derived[(key, WEEKLY)] = _counted(stores, key, WEEKLY, sorted({sunday_of(day) for day in days}))
    return replace(report, load=replace(report.load, symbols=symbols), derived=replace(report.derived, days=derived))


def _counted(stores: Stores, key: str, code: str, opens: Sequence[date]) -> pl.DataFrame:
    """Return frame[date, rows, complete]: the winning bars of windows that open on these days."""
    from market_pipeline.history.derive import count_days

    held = pl.concat(
        stores.bars.winners(key, code, midnight(first), midnight(last), ["ts", "complete"])
        for first, last in ranges_of(opens)
    )
    return pl.DataFrame({"date": opens}).join(count_days(held), on="date", how="left").fill_null(0)

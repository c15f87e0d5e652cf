"""The asset checks as Dagster sees them: unpartitioned, one result a run, with a table of the bad partitions."""
# no `from __future__ import annotations`: Dagster reads the annotations of ops and checks when it builds them

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from market_pipeline.errors import MarketPipelineError
from market_pipeline.orchestration.assets.derived import DAILY_DERIVED, WEEKLY, bars_key
from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.checks.dead_letter_rules import judge_dead_letters
from market_pipeline.orchestration.checks.evaluate import (
    evaluate_agreement,
    evaluate_freshness,
    evaluate_gaps,
    evaluate_live,
    evaluate_sanity,
)
from market_pipeline.orchestration.checks.freshness_rules import judge_partial
from market_pipeline.orchestration.checks.scope import last_days, run_days, sample_days
from market_pipeline.orchestration.checks.verdict import Verdict, report
from market_pipeline.orchestration.failures import readable_failures
from market_pipeline.orchestration.loaded import last_loaded_days, partial_partitions
from market_pipeline.orchestration.partitions import BarPartitions
from market_pipeline.orchestration.resources import BusResource, StoresResource, platform_settings
from market_pipeline.orchestration.wanted import Wanted

if TYPE_CHECKING:
    from market_pipeline.stores import Stores

GAPS, SANITY, FRESHNESS, PARTIAL_CLOSED, LIVE_AGREEMENT, DEAD_LETTERS, AGREEMENT = (
    "gaps",
    "ohlc_sanity",
    "freshness",
    "partial_closed",
    "live_agreement",
    "dead_letters",
    "agrees_with_parent",
)
_MINUTE_CHECKS = {
    SANITY: (
        "Every bar can be true of a market: low ≤ open, close ≤ high, prices above 0. Blocks the derived bars of the "
        "same run. A malformed row never gets this far: it is a dead letter."
    ),
    GAPS: (
        "No minute that the calendar expects is missing. Red: missing, and the vendor was not asked again. Yellow: the "
        "vendor gave nothing for longer than is usual for the instrument. Looks back to now − settle − lateness. Does "
        "not block derived bars: they carry `complete` instead."
    ),
    FRESHNESS: (
        "Each followed symbol has the bars that are due, counted in open-market minutes. A symbol of which no recent "
        "day was ever loaded is listed, and is not stale. A sensor evaluates this every five minutes."
    ),
    PARTIAL_CLOSED: "No day that is over was last loaded while it was still running (`partial: true`).",
    LIVE_AGREEMENT: (
        "Live against vendor: the minutes made from live ticks equal the vendor's settled ones, within "
        "`live.price_tolerance` and `live.volume_tolerance`. Yellow: some differ; the table has the largest. "
        "Looks at the days of its run, else at yesterday and today. Which of the two wins is the setting "
        "`history.precedence`; the job reconcile_live asks for the vendor's minutes first."
    ),
    DEAD_LETTERS: (
        "No message or row that could never be stored is unread. A dead letter is read once a person acknowledged, "
        "replayed or dropped it: `market-pipeline dead-letters`, or the job `replay_dead_letters`."
    ),
}
_NEWEST, _SPREAD, _RECENT, _MOST_SYMBOLS = 7, 14, 7, 50

_AGREEMENT = """The fold of the parent's stored bars equals the stored bars of this timeframe.

Of a long range the newest days and some spread over the others are compared; without a range, each symbol's newest
week."""


def build_checks(partitions: BarPartitions) -> list[dg.AssetChecksDefinition]:
    """Build the checks of minutes and of derived bars."""
    return [_minute_checks(partitions), _agreement(partitions, weekly=False), _agreement(partitions, weekly=True)]


def _minute_checks(partitions: BarPartitions) -> dg.AssetChecksDefinition:
    """Build the checks of minutes as one step: for each step of checks Dagster lists every partition of the asset."""

    specs = {
        name: dg.AssetCheckSpec(name, asset=MINUTES, description=text, blocking=name == SANITY)
        for name, text in _MINUTE_CHECKS.items()
    }

    @dg.multi_asset_check(name="minute_checks", specs=list(specs.values()), can_subset=True)
    def minute_checks(context: dg.AssetCheckExecutionContext, stores: StoresResource, bus: BusResource):  # type: ignore[no-untyped-def]  # Dagster reads a generator's annotation
        chosen = {check.name for check in context.selected_asset_check_keys}
        instruments, now = partitions.instruments, datetime.now(UTC)
        with readable_failures(), stores.open() as opened:
            days = run_days(context.run, partitions)
            platform = platform_settings(stores)
            settings = platform.history
            judges: dict[str, Callable[[], Verdict]] = {
                SANITY: lambda: evaluate_sanity(opened, instruments, settings, now, days),
                GAPS: lambda: evaluate_gaps(opened, instruments, settings, now, days),
                FRESHNESS: lambda: freshness_verdict(context.instance, opened, partitions, now),
                PARTIAL_CLOSED: lambda: partial_verdict(context.instance, partitions, now),
                LIVE_AGREEMENT: lambda: evaluate_live(
                    opened, instruments, platform, now, last_days(instruments, now.date()) if days is None else days
                ),
                DEAD_LETTERS: lambda: dead_letter_verdict(bus),
            }
            for name, judge in judges.items():
                if name in chosen:
                    yield from report(context.instance, specs[name], judge())

    return minute_checks


def freshness_verdict(
    instance: dg.DagsterInstance, stores: "Stores", partitions: BarPartitions, now: datetime
) -> Verdict:
    """Judge the freshness of the followed symbols."""
    followed = last_loaded_days(instance, MINUTES, partitions, now.date())
    members = [instrument for instrument in partitions.instruments if instrument.partition in followed]
    return evaluate_freshness(stores, partitions.instruments, members, now)


def partial_verdict(instance: dg.DagsterInstance, partitions: BarPartitions, now: datetime) -> Verdict:
    """Judge recent partitions whose last load was partial."""
    return judge_partial(partial_partitions(instance, MINUTES, partitions, now.date()), now)


def dead_letter_verdict(bus: BusResource) -> Verdict:
    """Judge the dead letters that nobody has read; a bus that cannot be asked is red, not silent."""
    try:
        return judge_dead_letters(bus.unread_letters())
    except MarketPipelineError as error:
        return Verdict("error", f"the dead letters cannot be counted: {error}")


def _agreement(partitions: BarPartitions, *, weekly: bool) -> dg.AssetChecksDefinition:
    codes = (WEEKLY,) if weekly else DAILY_DERIVED
    specs = {code: dg.AssetCheckSpec(AGREEMENT, asset=bars_key(code), description=_AGREEMENT) for code in codes}

    @dg.multi_asset_check(
        name="weekly_agreement" if weekly else "derived_agreement", specs=list(specs.values()), can_subset=True
    )
    def agreement(context: dg.AssetCheckExecutionContext, stores: StoresResource):  # type: ignore[no-untyped-def]  # Dagster reads a generator's annotation
        now = datetime.now(UTC)
        with readable_failures(), stores.open() as opened:
            asked = run_days(context.run, partitions, weekly=weekly)
            days, sampled = _compared(asked, opened, partitions, now)
            chosen = [code for code, spec in specs.items() if spec.key in context.selected_asset_check_keys]
            settings = platform_settings(stores).history
            verdicts = evaluate_agreement(opened, chosen, days, sampled=sampled, settings=settings, now=now)
            for code, verdict in verdicts.items():
                yield from report(context.instance, specs[code], verdict)

    return agreement


def _compared(asked: Wanted | None, stores: "Stores", partitions: BarPartitions, now: datetime) -> tuple[Wanted, bool]:
    """Return the days to compare: a sample of the run's, or each symbol's newest; bounded in symbols too."""
    if asked is None:
        newest = stores.bars.latest(partitions.instruments.keys, "1m")
        last_days = zip(newest["symbol"].to_list(), newest["ts"].dt.date().to_list(), strict=True)
        asked = {
            symbol: [(day - timedelta(days=_RECENT - 1), min(day, now.date()) + timedelta(days=1))]
            for symbol, day in last_days
        }
        sampled = True
    else:
        sampled = False
    few = dict(list(asked.items())[:_MOST_SYMBOLS])
    sample, cut = sample_days(few, _NEWEST, max(2, _SPREAD // max(1, len(few))))
    return sample, sampled or cut or len(few) < len(asked)

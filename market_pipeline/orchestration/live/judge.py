"""The checks of what the live run reports, judged by it: a materialization that nobody judged shows as unchecked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from market_pipeline.market.timeframes import DERIVED
from market_pipeline.orchestration.assets.derived import WEEKLY, bars_key
from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.checks.definitions import (
    AGREEMENT,
    DEAD_LETTERS,
    FRESHNESS,
    GAPS,
    LIVE_AGREEMENT,
    PARTIAL_CLOSED,
    SANITY,
    dead_letter_verdict,
    freshness_verdict,
    partial_verdict,
)
from market_pipeline.orchestration.checks.evaluate import (
    evaluate_agreement,
    evaluate_gaps,
    evaluate_live,
    evaluate_sanity,
)
from market_pipeline.orchestration.checks.scope import last_days
from market_pipeline.orchestration.partitions import BarPartitions, sunday_of
from market_pipeline.orchestration.resources import BusResource, StoresResource
from market_pipeline.settings import Settings

LOOKS, LOOK_AGAIN_S = 4, 5.0


def live_evaluations(
    instance: dg.DagsterInstance,
    settings: Settings,
    partitions: BarPartitions,
    stores: StoresResource,
    bus: BusResource,
    day: date,
) -> Iterator[dg.AssetCheckEvaluation]:
    """Judge every check of the bar assets: gaps over everything, the others over the day that is reported.

    Raises:
        StoreError: the store cannot be asked.
    """
    now = datetime.now(UTC)
    instruments, history = partitions.instruments, settings.history
    today = {each.key: [(day, day + timedelta(days=1))] for each in instruments}
    week = {each.key: [(sunday_of(day), sunday_of(day) + timedelta(days=7))] for each in instruments}
    with stores.open() as opened:
        verdicts = {
            SANITY: evaluate_sanity(opened, instruments, history, now, today),
            GAPS: evaluate_gaps(opened, instruments, history, now, None),
            FRESHNESS: freshness_verdict(instance, opened, partitions, now),
            PARTIAL_CLOSED: partial_verdict(instance, partitions, now),
            LIVE_AGREEMENT: evaluate_live(opened, instruments, settings, now, last_days(instruments, now.date())),
            DEAD_LETTERS: dead_letter_verdict(bus),
        }
        for name, verdict in verdicts.items():
            yield verdict.evaluation(MINUTES, name, blocking=name == SANITY)
        daily = [code for code in DERIVED if code != WEEKLY]
        for attempt in range(LOOKS):
            agreement = evaluate_agreement(opened, daily, today, sampled=False, settings=history, now=now)
            agreement |= evaluate_agreement(opened, [WEEKLY], week, sampled=False, settings=history, now=now)
            if all(verdict.level == "pass" for verdict in agreement.values()) or attempt == LOOKS - 1:
                break
            # Minutes are repaired and windows derived all the time: what differs for a moment is no disagreement.
            time.sleep(LOOK_AGAIN_S)
        for code, verdict in agreement.items():
            yield verdict.evaluation(bars_key(code), AGREEMENT)

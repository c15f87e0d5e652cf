"""Live against vendor under Dagster: the verdict, the job's days, and the schedule that rests while nothing is live."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from market_pipeline.errors import StoreUnreachable
from market_pipeline.history.reports import ReconcileReport
from market_pipeline.market.bars import LIVE_AGGREGATED, VENDOR_HISTORICAL
from market_pipeline.market.instruments import Instruments
from market_pipeline.market.reconciliation import DIFFERENCE_SCHEMA, Counts, count, differences, reconcile
from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.checks.evaluate import evaluate_live
from market_pipeline.orchestration.checks.live_rules import NO_LIVE, judge_live
from market_pipeline.orchestration.jobs import range_tags
from market_pipeline.settings import LiveSettings, Settings
from market_pipeline_tests.market.frames import minute_bars
from market_pipeline_tests.orchestration.conftest import Calls, StoredBars

START = datetime(2024, 3, 4, 10, tzinfo=UTC)
DAYS = {"EURUSD": [(date(2024, 3, 4), date(2024, 3, 5))]}
LATER = datetime(2024, 3, 6, tzinfo=UTC)
NOTHING = pl.DataFrame(schema=DIFFERENCE_SCHEMA)


def sides(minutes: int = 10) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return live minutes and the vendor's, equal but for a high that is one percent off at the third minute."""
    vendor = minute_bars(START, range(minutes))
    wrong = pl.when(pl.arange(pl.len()) == 2).then(pl.col("high") * 1.01).otherwise("high")
    return vendor.with_columns(source=pl.lit(LIVE_AGGREGATED), high=wrong), vendor


def test_without_a_live_minute_it_passes_and_says_why() -> None:
    verdict = judge_live({}, NOTHING, 0, LIVE_AGGREGATED)
    assert (verdict.level, verdict.sentence, verdict.numbers["minutes compared"]) == ("pass", NO_LIVE, 0)


def test_live_minutes_that_nothing_was_compared_with_name_the_job() -> None:
    verdict = judge_live({"EURUSD": Counts(only_live=30)}, NOTHING, 0, LIVE_AGGREGATED)
    assert verdict.level == "pass"
    assert "launch reconcile_live" in verdict.sentence


def test_a_difference_warns_with_its_values_and_who_wins() -> None:
    compared = reconcile(*sides())
    table = differences(compared)
    verdict = judge_live({"EURUSD": count(compared)}, table, 400, VENDOR_HISTORICAL)
    high = table["vendor"][0]
    assert verdict.level == "warn"
    assert verdict.sentence == (
        f"1 of 10 live minutes differ from the vendor's beyond tolerance, most of all EURUSD at 2024-03-04 10:02 UTC: "
        f"high {high * 1.01:.10g}, the vendor's {high:.10g} (1.0000% off). By the precedence vendor_historical wins"
    )
    evaluation = verdict.evaluation(MINUTES, "live_agreement")
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert evaluation.metadata["values that differ in all"].value == 400
    assert evaluation.metadata["minutes that differ"].value == 1


def test_the_check_reads_both_sources_of_the_days_within_tolerance(
    stored: StoredBars, instruments: Instruments
) -> None:
    stored.frames[("EURUSD", "1m")] = pl.concat(sides())
    opened: Any = type("Opened", (), {"bars": stored})
    strict = evaluate_live(opened, instruments, Settings(), LATER, DAYS)
    assert strict.table.select("symbol", "ts", "column").rows() == [("EURUSD", START + timedelta(minutes=2), "high")]
    lenient = Settings(live=LiveSettings(price_tolerance=0.011))
    assert evaluate_live(opened, instruments, lenient, LATER, DAYS).level == "pass"
    # settle and lateness after 10:02: the wrong minute is not yet compared, those before it are
    early = evaluate_live(opened, instruments, Settings(), START + timedelta(minutes=17), DAYS)
    assert (early.level, early.numbers["minutes compared"]) == ("pass", 2)


def run(defs: dg.Definitions, instance: dg.DagsterInstance, **more: Any) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def("reconcile_live").execute_in_process(instance=instance, **more)


def evaluation_of(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    [found] = [
        event.asset_check_evaluation_data
        for event in result.all_events
        if event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    return found


def test_the_job_takes_yesterday_and_today_and_reports_the_check(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls
) -> None:
    compared = reconcile(*sides())
    calls.reconciled = ReconcileReport(
        counts={"EURUSD": count(compared)}, differing=differences(compared), values=1, winner=LIVE_AGGREGATED
    )
    before = datetime.now(UTC).date()
    result = run(defs, instance)
    today = datetime.now(UTC).date()
    [call] = calls.reconciliations
    assert set(call["wanted"]) == {"EURUSD", "BTCUSD", "SPY", "IBM"}
    [(first, end)] = call["wanted"]["EURUSD"]
    assert (end - first).days == 2
    assert before <= end - timedelta(days=1) <= today
    found = evaluation_of(result)
    assert (found.asset_key, found.check_name, found.passed) == (MINUTES, "live_agreement", False)


def test_the_job_takes_the_days_that_it_is_given(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls
) -> None:
    given = {"symbols": ["EUR/USD"], "first_day": "2024-03-04", "last_day": "2024-03-05"}
    run(defs, instance, run_config={"ops": {"reconcile": {"config": given}}})
    run(defs, instance, tags=range_tags("2024-03-04|EURUSD", "2024-03-05|EURUSD"))
    wanted = {"EURUSD": [(date(2024, 3, 4), date(2024, 3, 6))]}
    assert [call["wanted"] for call in calls.reconciliations] == [wanted, wanted]


@pytest.mark.parametrize(
    "given",
    [{"first_day": "yesterday"}, {"first_day": "2024-03-05", "last_day": "2024-03-04"}, {"last_day": "2999-01-01"}],
)
def test_days_that_cannot_be_fail_in_one_sentence(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, given: dict[str, str]
) -> None:
    result = run(defs, instance, raise_on_error=False, run_config={"ops": {"reconcile": {"config": given}}})
    assert not result.success
    assert not calls.reconciliations


def tick(defs: dg.Definitions, folder: Path) -> dg.ScheduleExecutionData:
    repository = defs.get_repository_def()
    with (
        dg.DagsterInstance.local_temp(str(folder)) as kept,
        dg.build_schedule_context(kept, START, repository_def=repository, resources=defs.resources) as context,
    ):
        return repository.get_schedule_def("hourly_reconcile_live").evaluate_tick(context)


def test_the_schedule_rests_until_there_is_a_live_minute(
    defs: dg.Definitions, stored: StoredBars, tmp_path: Path
) -> None:
    vendor = minute_bars(START - timedelta(hours=2))
    stored.frames[("EURUSD", "1m")] = vendor
    assert "nothing to reconcile" in str(tick(defs, tmp_path).skip_message)
    stored.frames[("EURUSD", "1m")] = vendor.with_columns(source=pl.lit(LIVE_AGGREGATED))
    assert len(tick(defs, tmp_path).run_requests or []) == 1
    stored.error = StoreUnreachable("nothing answers at 127.0.0.1:1")
    assert "nothing answers" in str(tick(defs, tmp_path).skip_message)

"""The daily gap monitor and the aggregation of ticks as jobs, with the rooms below replaced."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

import market_pipeline
from market_pipeline.history.reports import AggregateReport, MonitorReport, SymbolAggregate
from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.partitions import materialization, partition_key
from market_pipeline.orchestration.tick_aggregation import AggregateConfig, days_of

NOON = datetime(2024, 3, 4, 12, tzinfo=UTC)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put stand-ins in the place of the history functions; return what they are asked."""
    calls: list[dict[str, Any]] = []

    def monitor_gaps(settings: Any, **more: Any) -> MonitorReport:
        calls.append(more)
        row = {"symbol": "EURUSD", "start": NOON, "end": NOON + timedelta(days=1), "expected": 1440, "missing": 7}
        return MonitorReport([{**row, "gaps": 2, "open": 5, "confirmed": 3, "unwatched": 0}])

    def aggregate_ticks(settings: Any, wanted: Any, **more: Any) -> AggregateReport:
        calls.append({"wanted": wanted, **more})
        return AggregateReport({"EURUSD": SymbolAggregate("EURUSD", ticks=90, minutes=9, complete=8)})

    stand_in = SimpleNamespace(monitor_gaps=monitor_gaps, aggregate_ticks=aggregate_ticks)
    monkeypatch.setattr(market_pipeline, "history", stand_in, raising=False)
    return calls


def output(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = [event for event in result.all_node_events if event.event_type_value == "STEP_OUTPUT"]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def test_the_monitor_reports_by_symbol_and_needs_no_configuration(
    defs: dg.Definitions, instance: dg.DagsterInstance, asked: list[dict[str, Any]]
) -> None:
    result = defs.resolve_job_def("monitor_gaps").execute_in_process(instance=instance)
    assert result.success
    assert (asked[0]["symbols"], asked[0]["whole"], asked[0]["run_id"]) == (None, False, result.run_id)
    found = output(result)
    assert (found["minutes missing"], found["minutes to ask for"], found["minutes confirmed as missing"]) == (7, 5, 3)
    assert [record.data["symbol"] for record in found["by symbol"].records] == ["EURUSD"]


def test_ticks_of_some_days_are_aggregated(
    defs: dg.Definitions, instance: dg.DagsterInstance, asked: list[dict[str, Any]]
) -> None:
    config = {"ops": {"aggregate": {"config": {"symbols": ["EUR/USD"], "first_day": "2024-03-01"}}}}
    result = defs.resolve_job_def("aggregate_ticks").execute_in_process(instance=instance, run_config=config)
    assert result.success
    assert asked[0]["wanted"] == {"EUR/USD": [(date(2024, 3, 1), date(2024, 3, 2))]}
    found = output(result)
    assert (found["ticks"], found["minutes"], found["minutes complete"]) == (90, 9, 8)


def test_days_are_yesterday_unless_named_and_a_wrong_one_is_said() -> None:
    today = date(2024, 3, 12)
    assert days_of(AggregateConfig(symbols=[]), today) == (date(2024, 3, 11), today)
    named = AggregateConfig(symbols=[], first_day="2024-03-01", last_day="2024-03-05")
    assert days_of(named, today) == (date(2024, 3, 1), date(2024, 3, 6))
    with pytest.raises(dg.Failure, match="write it as 2024-03-01"):
        days_of(AggregateConfig(symbols=[], first_day="1.3.2024"), today)


def test_the_daily_monitor_rests_until_something_was_loaded(defs: dg.Definitions, tmp_path: Path) -> None:
    schedule = defs.get_repository_def().get_schedule_def("daily_gap_monitor")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        context = dg.build_schedule_context(instance, NOON, repository_def=defs.get_repository_def())
        assert schedule.evaluate_tick(context).skip_message
        instance.report_runless_asset_event(materialization(MINUTES, partition_key(NOON.date(), "EURUSD"), {}))
        assert len(schedule.evaluate_tick(context).run_requests or []) == 1

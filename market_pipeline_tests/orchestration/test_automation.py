"""Schedules and the freshness sensor: what they ask for, and that they rest on an empty install."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from market_pipeline.errors import StoreUnreachable
from market_pipeline.market.bars import BAR_SCHEMA
from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.loaded import FOLLOWED_DAYS, last_loaded_days, partial_partitions
from market_pipeline.orchestration.partitions import BarPartitions, materialization, partition_key
from market_pipeline.orchestration.schedules import nightly_ranges
from market_pipeline_tests.orchestration.conftest import StoredBars

NIGHT = datetime(2024, 3, 12, 0, 20, tzinfo=UTC)
TODAY = NIGHT.date()


def record(instance: dg.DagsterInstance, day: date, partition: str, *, partial: bool = False) -> None:
    event = materialization(MINUTES, partition_key(day, partition), {"partial": partial})
    instance.report_runless_asset_event(event)


@pytest.fixture
def kept_instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """Give an instance on disk: a schedule opens its own from a reference, which an ephemeral one has not."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def tick(defs: dg.Definitions, instance: dg.DagsterInstance, name: str) -> dg.ScheduleExecutionData:
    repository = defs.get_repository_def()
    context = dg.build_schedule_context(instance, NIGHT, repository_def=repository)
    return repository.get_schedule_def(name).evaluate_tick(context)


def test_schedules_rest_on_an_empty_install(defs: dg.Definitions, kept_instance: dg.DagsterInstance) -> None:
    for name in ("nightly_history", "hourly_gap_repair", "daily_restatements"):
        data = tick(defs, kept_instance, name)
        assert not data.run_requests
        assert data.skip_message


def test_the_nightly_run_covers_the_last_two_days_and_what_was_missed(
    defs: dg.Definitions, kept_instance: dg.DagsterInstance
) -> None:
    record(kept_instance, TODAY - timedelta(days=1), "EURUSD", partial=True)
    record(kept_instance, TODAY - timedelta(days=1), "BTCUSD")
    record(kept_instance, TODAY - timedelta(days=8), "us")
    requests = tick(defs, kept_instance, "nightly_history").run_requests or []
    assert [
        (request.tags["dagster/asset_partition_range_start"], request.tags["dagster/asset_partition_range_end"])
        for request in requests
    ] == [("2024-03-10|EURUSD", "2024-03-11|BTCUSD"), ("2024-03-04|us", "2024-03-11|us")]
    assert len({request.run_key for request in requests}) == 2


def test_symbols_that_were_not_loaded_lately_are_left_alone(partitions: BarPartitions) -> None:
    yesterday = TODAY - timedelta(days=1)
    assert nightly_ranges(partitions, {"EURUSD": yesterday, "us": yesterday}, TODAY) == [
        ("EURUSD", "EURUSD", TODAY - timedelta(days=2)),
        ("us", "us", TODAY - timedelta(days=2)),
    ]
    assert nightly_ranges(partitions, {}, TODAY) == []


def test_the_hourly_repair_runs_once_something_was_loaded(
    defs: dg.Definitions, kept_instance: dg.DagsterInstance
) -> None:
    record(kept_instance, date(2019, 5, 1), "EURUSD")
    assert len(tick(defs, kept_instance, "hourly_gap_repair").run_requests or []) == 1
    assert len(tick(defs, kept_instance, "daily_restatements").run_requests or []) == 1
    assert not tick(defs, kept_instance, "nightly_history").run_requests  # 2019 is not followed


def test_the_newest_loaded_day_counts_within_the_followed_days(
    instance: dg.DagsterInstance, partitions: BarPartitions
) -> None:
    for days in (3, 9, 1):
        record(instance, TODAY - timedelta(days=days), "EURUSD")
    record(instance, TODAY - timedelta(days=FOLLOWED_DAYS), "BTCUSD")
    record(instance, TODAY - timedelta(days=FOLLOWED_DAYS + 1), "us")
    assert last_loaded_days(instance, MINUTES, partitions, TODAY) == {
        "EURUSD": TODAY - timedelta(days=1),
        "BTCUSD": TODAY - timedelta(days=FOLLOWED_DAYS),
    }


def test_the_last_event_of_a_partition_says_whether_it_is_partial(
    instance: dg.DagsterInstance, partitions: BarPartitions
) -> None:
    first, second = TODAY - timedelta(days=2), TODAY - timedelta(days=1)
    record(instance, first, "EURUSD", partial=True)
    record(instance, second, "EURUSD", partial=True)
    record(instance, first, "EURUSD", partial=False)  # loaded again after its end
    assert partial_partitions(instance, MINUTES, partitions, TODAY) == [(second, "EURUSD")]


def sensor_tick(defs: dg.Definitions, instance: dg.DagsterInstance) -> dg.SensorExecutionData:
    repository = defs.get_repository_def()
    with dg.build_sensor_context(instance=instance, repository_def=repository, resources=defs.resources) as context:
        return repository.get_sensor_def("freshness").evaluate_tick(context)


def test_freshness_rests_on_an_empty_install(
    defs: dg.Definitions, instance: dg.DagsterInstance, stored: StoredBars
) -> None:
    assert "nothing can be stale" in str(sensor_tick(defs, instance).skip_message)


@pytest.mark.parametrize(("age", "passed"), [(timedelta(0), True), (timedelta(days=4), False)])
def test_freshness_is_evaluated_without_a_run(
    defs: dg.Definitions, instance: dg.DagsterInstance, stored: StoredBars, age: timedelta, passed: bool
) -> None:
    now = datetime.now(UTC)
    record(instance, now.date() - timedelta(days=1), "BTCUSD")
    newest = pl.DataFrame({"symbol": ["BTCUSD"], "ts": [now - age]}, schema_overrides={"ts": BAR_SCHEMA["ts"]})
    stored.frames[("BTCUSD", "1m")] = newest
    fresh, partial, letters = sensor_tick(defs, instance).asset_events
    assert isinstance(fresh, dg.AssetCheckEvaluation)
    assert isinstance(letters, dg.AssetCheckEvaluation)
    assert (letters.check_name, letters.passed) == ("dead_letters", True)
    assert isinstance(partial, dg.AssetCheckEvaluation)
    assert (fresh.check_name, fresh.passed) == ("freshness", passed)
    assert (partial.check_name, partial.passed) == ("partial_closed", True)


def test_a_store_that_cannot_be_asked_is_red_not_silent(
    defs: dg.Definitions, instance: dg.DagsterInstance, stored: StoredBars
) -> None:
    record(instance, datetime.now(UTC).date(), "BTCUSD")
    stored.error = StoreUnreachable("nothing answers at 127.0.0.1:1")
    fresh = sensor_tick(defs, instance).asset_events[0]
    assert isinstance(fresh, dg.AssetCheckEvaluation)
    assert not fresh.passed
    assert "nothing answers" in str(fresh.description)

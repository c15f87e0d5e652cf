"""The live sensor and a live run's tie to Dagster, against a real instance."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import structlog
from dagster._core.test_utils import create_run_for_test
from structlog.testing import capture_logs

from market_pipeline.live.service import ServiceHealth
from market_pipeline.orchestration.live import watch
from market_pipeline.orchestration.live.job import LIVE_INGESTION, LIVE_TAGS
from market_pipeline.orchestration.live.log_relay import LogRelay
from market_pipeline.orchestration.live.report import LiveReporter
from market_pipeline.orchestration.live.rules import BEAT_TAG, SensorState
from market_pipeline.orchestration.live.sensor import ON_THEIR_WAY
from market_pipeline.orchestration.live.watch import RunWatch
from market_pipeline.orchestration.partitions import BarPartitions
from market_pipeline.orchestration.resources import BusResource, StoresResource
from market_pipeline.orchestration.run_log import service_log
from market_pipeline.settings import Settings

STARTED, FAILURE = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """Give an instance on disk: two threads must not share the one connection of an ephemeral one."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def looking() -> str:
    now = time.time()
    return SensorState(launches=1, looked=now - 5).text()


def tick(defs: dg.Definitions, instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorExecutionData:
    repository = defs.get_repository_def()
    with dg.build_sensor_context(instance=instance, repository_def=repository, cursor=cursor) as context:
        return repository.get_sensor_def("keep_live").evaluate_tick(context)


def live_run(instance: dg.DagsterInstance, beat_ago: float | None) -> dg.DagsterRun:
    run = create_run_for_test(instance, job_name=LIVE_INGESTION, status=STARTED, tags=LIVE_TAGS)
    if beat_ago is not None:
        instance.add_run_tags(run.run_id, {BEAT_TAG: f"{time.time() - beat_ago:.0f}"})
    return run


def test_the_first_look_launches_a_run_of_its_own_key(defs: dg.Definitions, instance: dg.DagsterInstance) -> None:
    first = tick(defs, instance)
    second = tick(defs, instance, first.cursor)
    keys = [(data.run_requests or [])[0].run_key for data in (first, second)]
    assert len(set(keys)) == 2, "a fixed key never launches again"


def test_a_run_that_beats_is_left_alone(defs: dg.Definitions, instance: dg.DagsterInstance) -> None:
    live_run(instance, beat_ago=3)
    data = tick(defs, instance, looking())
    assert not data.run_requests
    assert "is alive" in str(data.skip_message)


@pytest.mark.parametrize("status", ["NOT_STARTED", "STARTING", "CANCELING"])
def test_a_run_on_its_way_is_waited_for(defs: dg.Definitions, instance: dg.DagsterInstance, status: str) -> None:
    create_run_for_test(instance, job_name=LIVE_INGESTION, status=dg.DagsterRunStatus(status), tags=LIVE_TAGS)
    assert not tick(defs, instance, looking()).run_requests


def test_a_run_that_waits_in_the_queue_is_on_its_way_too() -> None:
    # Dagster's own list of runs in progress lacks it, and a run in this state cannot be made without a code server.
    assert dg.DagsterRunStatus.QUEUED in ON_THEIR_WAY


def test_a_busy_run_beats_all_the_same_and_learns_that_it_shall_end(
    kept: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "BEAT_EVERY_S", 0.05)
    run = live_run(kept, beat_ago=None)
    with RunWatch(kept, run.run_id, logging.getLogger("test")) as beating:
        found = kept.get_run_by_id(run.run_id)
        assert found is not None
        assert not beating.over.is_set()
        kept.report_run_failed(found)
        assert beating.over.wait(60)


def test_an_orphan_that_died_is_reported_and_replaced(defs: dg.Definitions, instance: dg.DagsterInstance) -> None:
    run = live_run(instance, beat_ago=60)
    assert len(tick(defs, instance, looking()).run_requests or []) == 1
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status == FAILURE


def test_only_one_run_may_ingest_and_no_retry_starts_another(defs: dg.Definitions) -> None:
    tags = defs.get_job_def(LIVE_INGESTION).tags
    assert tags["market_pipeline/live"] == "true"
    assert tags["dagster/max_retries"] == "0"


class Broken:
    """Stand in for a storage that is away."""

    def get_run_by_id(self, _: str) -> Any:
        raise OSError("connection refused")


def test_a_run_beats_while_it_is_started_and_ends_when_it_is_not(instance: dg.DagsterInstance) -> None:
    run = live_run(instance, beat_ago=None)
    tie = RunWatch(instance, run.run_id, logging.getLogger("test"))
    assert tie.beat()
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert abs(float(found.tags[BEAT_TAG]) - time.time()) < 30
    instance.report_run_failed(found)
    assert not tie.beat()


class Closed:
    """Stand in for a log that is in that storage: Dagster's own handler raises what the storage raises."""

    def log(self, level: int, text: str) -> None:
        raise OSError(f"connection refused: {level} {text}")


def test_a_storage_that_is_away_ends_nothing(instance: dg.DagsterInstance) -> None:
    run = live_run(instance, beat_ago=None)
    tie = RunWatch(instance, run.run_id, Closed())
    tie._instance = Broken()  # type: ignore[assignment]
    with capture_logs() as entries:
        assert tie.beat()
        assert tie.beat()
        assert tie.missed == 2
        assert tie.away
        tie._instance = instance
        assert tie.beat()
        assert not tie.away
    assert [entry["event"] for entry in entries] == [
        "dagster_storage_away_ingestion_goes_on",
        "dagster_storage_answers_again",
    ]


def test_a_run_that_shall_end_learns_so_even_if_it_cannot_say_it(
    kept: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "BEAT_EVERY_S", 0.05)
    run = create_run_for_test(kept, job_name=LIVE_INGESTION, status=FAILURE, tags=LIVE_TAGS)
    with RunWatch(kept, run.run_id, Closed()) as beating:
        assert beating.over.wait(60)


def test_a_log_that_is_away_does_not_end_a_report(
    instance: dg.DagsterInstance, partitions: BarPartitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(log=Closed(), instance=instance)
    reporter = LiveReporter(
        context,  # type: ignore[arg-type]
        Settings(),
        list(partitions.instruments),
        partitions,
        stores=StoresResource(),
        bus=BusResource(),
    )
    looks: list[object] = []

    def away(_: object) -> bool:
        looks.append(1)
        raise OSError("the storage is away")

    monkeypatch.setattr(reporter, "_report", away)
    reporter.look([ServiceHealth("ticks", "waiting", ("the tick store is away",), {})])
    reporter.close()
    assert looks, "it did try"


def test_services_log_on_while_the_step_s_log_is_away() -> None:
    with service_log(Closed()):
        structlog.get_logger("room").warning("something_happens", symbol="EURUSD")
    relay = LogRelay(Closed())
    with relay:
        structlog.get_logger("room").warning("something_happens", symbol="EURUSD")
    assert relay.dropped == 1

"""The sensor that keeps exactly one live run alive."""
# no `from __future__ import annotations`: Dagster reads the annotations of resources

import time

import dagster as dg
from dagster._core.storage.dagster_run import RunRecord

from market_pipeline.orchestration.live.job import LIVE_INGESTION
from market_pipeline.orchestration.live.rules import BEAT_TAG, SENSOR_EVERY_S, LiveRun, SensorState, decide

_REMEMBERED = 8
"""Runs that ended last, for the pause after quick falls."""


def keep_live_sensor() -> dg.SensorDefinition:
    """Build the sensor. It rests until a person turns it on: streaming needs a plan that includes it."""

    @dg.sensor(
        name="keep_live",
        job_name=LIVE_INGESTION,
        minimum_interval_seconds=SENSOR_EVERY_S,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=(
            "Keeps exactly one run of live_ingestion alive: launches one where there is none, and declares one dead "
            "that has not beaten for 20 s. Turn it on to go live, off (and terminate the run) to stop."
        ),
    )
    def keep_live(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        instance, now = context.instance, time.time()
        of_job = dg.RunsFilter(job_name=LIVE_INGESTION, statuses=ON_THEIR_WAY)
        records = {record.dagster_run.run_id: record for record in instance.get_run_records(of_job)}
        ended = instance.get_run_records(
            dg.RunsFilter(job_name=LIVE_INGESTION, statuses=_ENDED), limit=_REMEMBERED, order_by="id"
        )
        decision = decide(
            [_live_run(record) for record in records.values()],
            [_live_run(record) for record in ended],
            SensorState.read(context.cursor),
            now,
        )
        for run_id in decision.dead:
            context.log.warning(f"run {run_id} has not beaten for 20 s: declared dead")
            instance.report_run_failed(
                records[run_id].dagster_run, "The live run gave no sign of life for 20 s: its process is gone."
            )
        cursor = decision.state.text()
        if not decision.launch:
            return dg.SensorResult(skip_reason=decision.reason, cursor=cursor)
        key = f"live-{decision.state.launches}-{int(now)}"
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=key)], cursor=cursor)

    return keep_live


# Dagster's own list of runs in progress begins where a run has left the queue.
ON_THEIR_WAY = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_ENDED = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED]


def _live_run(record: RunRecord) -> LiveRun:
    beat = record.dagster_run.tags.get(BEAT_TAG, "")
    return LiveRun(
        run_id=record.dagster_run.run_id,
        status=record.dagster_run.status.value,
        started=record.start_time,
        ended=record.end_time,
        beat=float(beat) if beat.replace(".", "", 1).isdecimal() else None,
    )

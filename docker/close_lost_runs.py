"""Close the runs that a code server left open when its container ended. Run it before the next one starts.

Dagster's default launcher executes runs as processes of the code server and cannot ask whether one is still alive: a
run whose container was stopped would stay STARTED for ever and hold its slot of the queue. Runs that were being
cancelled become cancelled; the others fail, so that a job's own retries (tag dagster/max_retries) apply.
"""

import argparse
import json

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.storage.tags import GRPC_INFO_TAG

OPEN = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
REASON = "The container of the code server ended, and with it the process of this run."


def close_lost_runs(instance: DagsterInstance, host: str) -> list[str]:
    """Close every open run that was launched on the code server `host`; return their ids.

    A run that the daemon has not handed to the server yet carries no host: its launch is about to fail by itself.
    """
    lost = [run for run in instance.get_runs(RunsFilter(statuses=OPEN)) if _host(run) == host]
    for run in lost:
        if run.status == DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, REASON)
        else:
            instance.report_run_failed(run, REASON)
    return [run.run_id for run in lost]


def _host(run: DagsterRun) -> str | None:
    return json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("host")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True, help="the code server's name in workspace.yaml")
    with DagsterInstance.get() as dagster_instance:
        closed = close_lost_runs(dagster_instance, parser.parse_args().host)
    print(f"lost runs closed: {', '.join(closed) or 'none'}", flush=True)

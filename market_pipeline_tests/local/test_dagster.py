"""Dagster under the supervisor, with a small module of definitions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from market_pipeline.errors import LocalStackError
from market_pipeline.local import locks
from market_pipeline.local.control_room import ControlRoom
from market_pipeline.local.stack import Stack

MODULE = "stack_test_definitions"
_DEFINITIONS = """
import time
import dagster as dg

@dg.op
def quick(context):
    context.log.info("did it")

@dg.op
def long(context):
    time.sleep(600)

@dg.job(executor_def=dg.in_process_executor)
def quick_job():
    quick()

@dg.job(executor_def=dg.in_process_executor)
def long_job():
    long()

defs = dg.Definitions(jobs=[quick_job, long_job])
"""
_LAUNCH = """
mutation Launch($location: String!, $job: String!) {
    launchRun(executionParams: {runConfigData: {}, selector: {
        repositoryLocationName: $location, repositoryName: "__repository__", jobName: $job}}) { __typename } }
"""
_RUNS = "{ runsOrError { ... on Runs { results { runId jobName status } } } }"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository: a workspace.yaml, and beside it the .env that `up` writes."""
    folder = tmp_path_factory.mktemp("project")
    (folder / f"{MODULE}.py").write_text(_DEFINITIONS)
    (folder / "workspace.yaml").write_text(
        f"load_from:\n  - python_module: {{module_name: {MODULE}, location_name: {MODULE}, working_directory: .}}\n"
    )
    return folder


@pytest.fixture(scope="module")
def stack(project: Path) -> Iterator[Stack]:
    before = os.environ.copy()
    os.environ["PYTHONPATH"] = str(project)
    try:
        stack = Stack(project / "home", ("dagster",), module=MODULE, project_dir=project, die_with_parent=True)
        with stack:
            yield stack
    finally:
        os.environ.clear()
        os.environ.update(before)


def graphql(stack: Stack, query: str, **variables: str) -> Any:
    body = {"query": query, "variables": variables}
    answer = httpx.post(f"{stack.settings.dagster.webserver_url}/graphql", json=body, timeout=60)
    return answer.json()["data"]


def status_of(stack: Stack, job: str) -> str:
    runs = graphql(stack, _RUNS)["runsOrError"]["results"]
    return next((run["status"] for run in runs if run["jobName"] == job), "NONE")


def until(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def launch(stack: Stack, job: str) -> None:
    """Launch as the UI does."""
    answer = graphql(stack, _LAUNCH, location=MODULE, job=job)
    assert answer["launchRun"]["__typename"] == "LaunchRunSuccess"


def launch_from_the_command_line(project: Path, job: str) -> None:
    """Launch as a user does in the project's folder: nothing but the .env says where the stack is."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-m", "dagster", "job", "launch", "-w", "workspace.yaml", "-j", job],
        cwd=project,
        env=kept,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_a_job_launched_through_the_dotenv_runs_in_the_stack(stack: Stack, project: Path) -> None:
    launch_from_the_command_line(project, "quick_job")
    until(lambda: status_of(stack, "quick_job") == "SUCCESS")


def test_after_everything_was_killed_no_run_stays_open(stack: Stack) -> None:
    """A run whose process is gone would hold a slot of the queue for ever."""
    launch(stack, "long_job")
    until(lambda: status_of(stack, "long_job") == "STARTED")
    stack.kill_all()
    assert not locks.marked(stack.home.root)
    assert stack.start().healthy
    assert status_of(stack, "long_job") == "CANCELED"
    assert status_of(stack, "quick_job") == "SUCCESS"


def test_a_killed_code_server_comes_back(stack: Stack) -> None:
    def component() -> Any:
        state = stack.state()
        assert state is not None
        return state.component("dagster-code")

    pid = component().pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: component().state == "ready" and component().pid != pid)


def test_after_postgres_was_killed_the_control_room_looks_past_kept_connections(stack: Stack) -> None:
    """The webserver keeps a connection of each storage: all of them are dead once PostgreSQL comes back."""
    state = stack.state()
    before = state.component("postgres") if state else None
    assert before is not None
    assert before.pid is not None
    with ControlRoom(stack.settings.dagster.webserver_url) as room:
        known = room.runs_of("quick_job")
        assert known
        os.kill(before.pid, signal.SIGKILL)

        def is_back() -> bool:
            now = stack.state()
            found = now.component("postgres") if now else None
            return found is not None and found.state == "ready" and found.pid != before.pid

        until(is_back)
        assert room.runs_of("quick_job") == known
        # What changes something is never sent twice: a person is told, in one line, and repeats it.
        launched, refusals = "", []
        while not launched and len(refusals) < 4:
            try:
                launched = room.launch("quick_job")
            except LocalStackError as error:
                refusals.append(str(error))
        assert all("psycopg2.OperationalError" in said and "\n" not in said for said in refusals)
        assert room.wait([launched], timeout=60) == {launched: "SUCCESS"}


def test_stop_ends_the_runs_too(stack: Stack) -> None:
    launch(stack, "long_job")
    until(lambda: status_of(stack, "long_job") == "STARTED")
    assert stack.stop()
    assert not locks.marked(stack.home.root)

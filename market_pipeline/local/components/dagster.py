"""Dagster's code server, webserver and daemon, run by the interpreter of this environment."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import httpx
import psutil
import structlog

from market_pipeline.local import locks
from market_pipeline.local.components.base import Component, Context, ProbeFailed, ProbeUnknown
from market_pipeline.local.environment import dagster_variables
from market_pipeline.local.layout import write_private
from market_pipeline.local.ports import LOOPBACK
from market_pipeline.local.processes import Launch

PROBE_TIMEOUT_S = 5.0
DAEMON_SILENCE_S = 120.0  # every daemon beats at least every 30 s
GRPC_SERVICE = "DagsterApi"
_log = structlog.get_logger(__name__)
_UNREACHABLE = "DagsterUserCodeUnreachableError"
_LOCATIONS = """
{ workspaceOrError {
    __typename
    ... on Workspace { locationEntries { name loadStatus
        locationOrLoadError { __typename ... on PythonError { message } } } }
    ... on PythonError { message } } }
"""
_OPEN_RUNS = """
query Open($before: Float!) {
    runsOrError(filter: {statuses: [STARTING, STARTED, CANCELING], updatedBefore: $before}) {
        __typename ... on Runs { results { runId } } ... on PythonError { message } } }
"""
_CLOSE_RUNS = """
mutation Close($ids: [String!]!) {
    terminateRuns(runIds: $ids, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) {
        __typename ... on PythonError { message } } }
"""
_DAEMONS = """
{ instance { daemonHealth { allDaemonStatuses {
    daemonType required lastHeartbeatTime lastHeartbeatErrors { message } } } } }
"""


class _Dagster(Component):
    """What the three processes of Dagster share: environment, folder, GraphQL."""

    after: ClassVar[tuple[str, ...]] = ("postgres",)
    packages: ClassVar[tuple[str, ...]] = ("dagster-webserver", "dagster-postgres")
    ready_timeout_s: ClassVar[float] = 120.0  # importing Dagster takes seconds, more on a busy machine

    @property
    def workspace(self) -> Path:
        return self.home.run / "workspace.yaml"

    def prepare(self) -> None:
        """Write a workspace that points at the supervised code server.

        The location has the name that plain `dagster dev` gives it, so that both see the same jobs and schedules.
        """
        server = {"host": LOOPBACK, "port": self.context.ports["dagster-code"], "location_name": self.context.module}
        write_private(self.workspace, json.dumps({"load_from": [{"grpc_server": server}]}, indent=2) + "\n")

    def _launch(self, *arguments: str) -> Launch:
        # Not in the project's folder: Dagster would let the .env there override what the supervisor says.
        variables = dagster_variables(self.home, self.context.ports, self.context.passwords)
        # gRPC would ask a proxy of the environment for the code server, which is all that Dagster speaks gRPC with.
        environment = {**os.environ, **variables, "no_grpc_proxy": LOOPBACK}
        return Launch(argv=[sys.executable, "-m", *arguments], cwd=self.home.dagster_home, env=environment)

    def _query(self, query: str, **variables: Any) -> Any:
        address = f"http://{LOOPBACK}:{self.context.ports['dagster-webserver']}/graphql"
        body = {"query": query, "variables": variables}
        answer = httpx.post(address, json=body, timeout=PROBE_TIMEOUT_S, trust_env=False)
        answer.raise_for_status()
        body = answer.json()
        if body.get("errors"):
            raise ProbeFailed(f"GraphQL: {body['errors'][0].get('message', 'unknown error')}")
        return body["data"]


class DagsterCode(_Dagster):
    """Run the code server, which holds the definitions and launches runs."""

    name: ClassVar[str] = "dagster-code"
    launches_runs: ClassVar[bool] = True
    port_names: ClassVar[tuple[str, ...]] = ("dagster-code",)

    @property
    def address(self) -> str:
        return f"grpc://{LOOPBACK}:{self.port}"

    def prepare(self) -> None:
        super().prepare()
        if not _is_importable(self.context.module):
            raise ProbeFailed(
                f"the module {self.context.module} with Dagster's definitions is not installed in {sys.prefix}",
                final=True,
            )

    def launch(self) -> Launch:
        arguments = ("-h", LOOPBACK, "-p", str(self.port), "-m", self.context.module)
        named = ("--location-name", self.context.module)
        return self._launch(
            "dagster", "code-server", "start", *arguments, *named, "--use-python-environment-entry-point"
        )

    def probe(self, *, deep: bool) -> None:
        """Ask the server for its health over gRPC; what it loaded is the webserver's probe."""
        import grpc  # type: ignore[import-untyped]
        from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

        request = health_pb2.HealthCheckRequest(service=GRPC_SERVICE)
        with grpc.insecure_channel(f"{LOOPBACK}:{self.port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PROBE_TIMEOUT_S)
            except grpc.RpcError as error:
                raise ProbeFailed(f"no answer from the code server ({error.code().name})") from error
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise ProbeFailed("the code server does not serve")


class DagsterWebserver(_Dagster):
    """Run the UI and its GraphQL API."""

    name: ClassVar[str] = "dagster-webserver"
    port_names: ClassVar[tuple[str, ...]] = ("dagster-webserver",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._closed_lost_runs = False

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def bootstrap(self) -> None:
        """Cancel the runs that an earlier stack left open when it was killed.

        Their processes are gone (the supervisor ended what was left of them before it began), nobody else will close
        them, and each would hold a slot of the queue for ever. Not done beside a `dagster dev` on the same instance:
        the open runs may be its own.
        """
        if self._closed_lost_runs:
            return
        try:
            if not _foreign_dagster(self.home.dagster_home):
                runs = self._query(_OPEN_RUNS, before=self.started_at)["runsOrError"]
                lost = [run["runId"] for run in runs.get("results", [])]
                if lost:
                    self._query(_CLOSE_RUNS, ids=lost)
                    _log.warning("runs of a killed stack are cancelled", runs=lost)
        except httpx.HTTPError as error:
            raise ProbeFailed(f"no answer over GraphQL ({type(error).__name__})") from error
        self._closed_lost_runs = True

    def launch(self) -> Launch:
        return self._launch("dagster_webserver", "-h", LOOPBACK, "-p", str(self.port), "-w", str(self.workspace))

    def probe(self, *, deep: bool) -> None:
        """Ask over GraphQL whether every code location is loaded without an error."""
        try:
            workspace = self._query(_LOCATIONS)["workspaceOrError"]
        except httpx.HTTPError as error:
            raise ProbeFailed(f"no answer over GraphQL ({type(error).__name__})") from error
        if workspace["__typename"] != "Workspace":
            raise ProbeFailed(_first_line(workspace.get("message", "no workspace")))
        for entry in workspace["locationEntries"]:
            location = entry["locationOrLoadError"]
            if location is None or entry["loadStatus"] != "LOADED":
                raise ProbeFailed(f"{entry['name']} is being loaded")
            if location["__typename"] == "PythonError":
                message = _first_line(location["message"])
                # While the code server starts, nothing is wrong: the webserver sees it come and loads again.
                raise ProbeFailed(f"{entry['name']} does not load: {message}", final=_UNREACHABLE not in message)
        if not workspace["locationEntries"]:
            raise ProbeFailed("no code location is loaded")


class DagsterDaemon(_Dagster):
    """Run schedules, sensors, the run queue and backfills."""

    name: ClassVar[str] = "dagster-daemon"

    @property
    def address(self) -> str:
        return ""

    def launch(self) -> Launch:
        return self._launch("dagster._daemon", "run", "-w", str(self.workspace))

    def probe(self, *, deep: bool) -> None:
        """Ask over GraphQL whether every required daemon has beaten since it was started, and lately."""
        try:
            statuses = self._query(_DAEMONS)["instance"]["daemonHealth"]["allDaemonStatuses"]
        except httpx.HTTPError as error:
            raise ProbeUnknown("the webserver, which knows the daemon's heartbeats, does not answer") from error
        since = max(self.started_at, time.time() - DAEMON_SILENCE_S)
        silent = [s["daemonType"] for s in statuses if s["required"] and (s["lastHeartbeatTime"] or 0) < since]
        if silent:
            raise ProbeFailed(f"no heartbeat from {', '.join(sorted(silent)).lower()}")


def _foreign_dagster(dagster_home: Path) -> bool:
    """Tell whether a process outside the stack works on this instance."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.Error, OSError):
            continue
        if environment.get("DAGSTER_HOME") == str(dagster_home) and locks.MARK not in environment:
            return True
    return False


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else text

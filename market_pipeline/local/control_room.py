"""Dagster's GraphQL interface, as the demo and tests use it: launch, wait, look. It needs no import of dagster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import stamina

from market_pipeline.errors import LocalStackError
from market_pipeline.local import graphql

FINISHED = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
BACKFILL_FINISHED = frozenset({"COMPLETED_SUCCESS", "COMPLETED_FAILED", "COMPLETED", "FAILED", "CANCELED"})


@dataclass(frozen=True)
class CheckVerdict:
    """The last evaluation of one asset check: `status` is SUCCEEDED, FAILED, IN_PROGRESS, ... or "" for never."""

    asset: str
    name: str
    status: str
    severity: str
    description: str


class _DatabaseAway(LocalStackError):
    """Dagster could not use its PostgreSQL."""


def _first_line(message: str) -> str:
    """Return what a person wants to read of an error: of one of the database, a statement and its parameters follow."""
    return message.strip().partition("\n")[0]


class ControlRoom:
    """Talk to one Dagster webserver."""

    def __init__(self, url: str) -> None:
        # Loopback: proxies of the environment have no part in this.
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self.url = url

    def __enter__(self) -> ControlRoom:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """Send one GraphQL operation and return its data; what only reads is sent again where PostgreSQL went away.

        Raises:
            LocalStackError: the webserver does not answer, or refuses the operation.
        """
        if text.lstrip().startswith("mutation"):
            return self._send(text, variables)
        # Once PostgreSQL is back, each of the webserver's three storages fails once more on the connection it had kept.
        for trial in stamina.retry_context(on=_DatabaseAway, attempts=6, timeout=20, wait_initial=0.2, wait_jitter=0.1):
            with trial:
                return self._send(text, variables)
        raise AssertionError("stamina returns or raises")

    def _send(self, text: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = self._http.post("/graphql", json={"query": text, "variables": variables})
            body = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise LocalStackError(f"Dagster's webserver at {self.url} does not answer: {error}") from error
        # Errors of its own resolvers come in the data, as a union's PythonError.
        messages = [each["message"] for each in body.get("errors") or ()]
        data = dict(body.get("data") or {})
        messages += [
            each["message"]
            for each in data.values()
            if isinstance(each, dict) and each.get("__typename") == "PythonError" and each.get("message")
        ]
        for message in messages:
            if "OperationalError" in message:
                raise _DatabaseAway(f"Dagster cannot use its database: {_first_line(message)}")
        if body.get("errors"):
            raise LocalStackError(f"Dagster refuses the request: {_first_line(messages[0])}")
        return data

    def location(self) -> tuple[str, str]:
        """Return the names of the code location and its repository.

        Raises:
            LocalStackError: the definitions could not be loaded.
        """
        found = self.query(graphql.LOCATION)["repositoriesOrError"]
        nodes = found.get("nodes")
        if not nodes:
            raise LocalStackError(f"Dagster has loaded no definitions: {found.get('message', 'see its log')}")
        return nodes[0]["location"]["name"], nodes[0]["name"]

    def launch(
        self, job: str, *, tags: Mapping[str, str] | None = None, config: Mapping[str, Any] | None = None
    ) -> str:
        """Launch a run of a job and return its id; it is queued like a run launched in the UI."""
        location, repository = self.location()
        selector = {"repositoryLocationName": location, "repositoryName": repository, "jobName": job}
        params = {
            "selector": selector,
            "runConfigData": dict(config or {}),
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in (tags or {}).items()]},
        }
        result = self.query(graphql.LAUNCH, params=params)["launchRun"]
        if result["__typename"] != "LaunchRunSuccess":
            messages = [result] if result.get("message") else result.get("errors", [])
            said = "; ".join(_first_line(each["message"]) for each in messages)
            raise LocalStackError(f"Dagster did not launch {job}: {said or result['__typename']}")
        return str(result["run"]["runId"])

    def run(self, run_id: str) -> dict[str, Any]:
        """Return status, times and counts of a run."""
        return dict(self.query(graphql.RUN, id=run_id)["runOrError"])

    def wait(
        self, run_ids: Sequence[str], *, timeout: float, tick: Callable[[dict[str, str]], None] | None = None
    ) -> dict[str, str]:
        """Wait until the runs have finished; return their statuses. `tick` sees the statuses at every look.

        Raises:
            LocalStackError: they have not finished in time.
        """
        until = time.monotonic() + timeout
        while True:
            statuses = {run_id: str(self.run(run_id).get("status", "")) for run_id in run_ids}
            if tick is not None:
                tick(statuses)
            if all(status in FINISHED for status in statuses.values()):
                return statuses
            if time.monotonic() > until:
                raise LocalStackError(f"runs are still under way after {timeout:.0f} s: {statuses}")
            time.sleep(0.5)

    def backfill(self, assets: Sequence[str], partitions: Sequence[str]) -> str:
        """Launch a backfill of assets over partitions, as the UI's dialog does, and return its id."""
        params = {"assetSelection": [{"path": [asset]} for asset in assets], "partitionNames": list(partitions)}
        result = self.query(graphql.BACKFILL, params=params)["launchPartitionBackfill"]
        if result["__typename"] != "LaunchBackfillSuccess":
            raise LocalStackError(f"Dagster did not launch the backfill: {result.get('message', result['__typename'])}")
        return str(result["backfillId"])

    def wait_backfill(self, backfill_id: str, *, timeout: float) -> str:
        """Wait until a backfill has ended and return its status."""
        until = time.monotonic() + timeout
        while True:
            found = self.query(graphql.BACKFILL_STATUS, id=backfill_id)["partitionBackfillOrError"]
            status = str(found.get("status", found.get("message")))
            if status in BACKFILL_FINISHED:
                return status
            if time.monotonic() > until:
                raise LocalStackError(f"backfill {backfill_id} is still {status} after {timeout:.0f} s")
            time.sleep(1)

    def runs_of(self, job: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return the newest runs of a job: runId, status, startTime, endTime (epoch s or None)."""
        found = self.query(graphql.RUNS_OF_JOB, job=job, limit=limit)["runsOrError"]
        self._expect(found, "Runs", f"list the runs of {job}")
        return list(found["results"])

    def terminate(self, run_id: str) -> None:
        """Ask a run to end."""
        self._expect(
            self.query(graphql.TERMINATE, id=run_id)["terminateRun"], "TerminateRunSuccess", f"terminate {run_id}"
        )

    def start_sensor(self, name: str) -> None:
        """Turn a sensor on; harmless when it is on."""
        self._expect(
            self.query(graphql.START_SENSOR, selector=self._sensor(name))["startSensor"], "Sensor", f"start {name}"
        )

    def stop_sensor(self, name: str) -> None:
        """Turn a sensor off; harmless when it is off."""
        found = self.query(graphql.SENSOR, selector=self._sensor(name))["sensorOrError"]
        self._expect(found, "Sensor", f"find {name}")
        result = self.query(graphql.STOP_SENSOR, id=found["id"])["stopSensor"]
        self._expect(result, "StopSensorMutationResult", f"stop {name}")

    def _sensor(self, name: str) -> dict[str, str]:
        location, repository = self.location()
        return {"repositoryLocationName": location, "repositoryName": repository, "sensorName": name}

    def _expect(self, result: Mapping[str, Any], kind: str, what: str) -> None:
        if result["__typename"] != kind:
            said = _first_line(result.get("message") or result["__typename"])
            raise LocalStackError(f"Dagster did not {what}: {said}")

    def checks(self, assets: Sequence[str]) -> list[CheckVerdict]:
        """Return the last verdict of every check of the assets."""
        nodes = self.query(graphql.CHECKS, keys=[{"path": [asset]} for asset in assets])["assetNodes"]
        verdicts: list[CheckVerdict] = []
        for node in nodes:
            for check in node["assetChecksOrError"].get("checks", []):
                execution = check["executionForLatestMaterialization"] or {}
                evaluation = execution.get("evaluation") or {}
                verdicts.append(
                    CheckVerdict(
                        "/".join(node["assetKey"]["path"]),
                        check["name"],
                        execution.get("status", ""),
                        evaluation.get("severity", ""),
                        evaluation.get("description") or "",
                    )
                )
        return verdicts

"""The registry of services: who runs, and how it is, as each service says itself; whoever falls silent vanishes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec
import structlog
from nats.js.kv import KeyValue

from market_pipeline.bus.kv import KV_ERRORS, open_bucket, values_of
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import bus_error
from market_pipeline.bus.subjects import token

log = structlog.get_logger(__name__)

SERVICE_BUCKET = "services"
SILENT_AFTER_S = 15.0


class ServiceReport(msgspec.Struct, frozen=True):
    """What a service said of itself, `at` (epoch s). instance: host and process; run_id: its Dagster run, if any.

    state, problems and facts are those of `live.service.ServiceHealth`; restarts: how often it was started anew.
    """

    name: str
    instance: str
    state: str
    at: float
    problems: tuple[str, ...] = ()
    facts: Mapping[str, int | float | str] = {}
    restarts: int = 0
    run_id: str = ""

    @property
    def host(self) -> str:
        """The machine or container that it runs on."""
        return self.instance.rpartition("-")[0]

    @property
    def age_s(self) -> float:
        """Seconds since it was said."""
        return max(0.0, time.time() - self.at)


class ServiceRegistry:
    """Keep the last report of each service in a key-value bucket whose entries end after 15 s."""

    def __init__(self, bus: BusSession) -> None:
        self._bus = bus
        self._bucket: KeyValue | None = None

    async def say(self, reports: Sequence[ServiceReport]) -> None:
        """Keep reports.

        Raises:
            BusUnreachable: JetStream does not answer.
        """
        bucket = await self._open()
        try:
            for each in reports:
                await bucket.put(_key(each), msgspec.json.encode(each))
        except KV_ERRORS as error:
            raise bus_error(error, "the registry of services") from error

    async def all(self) -> list[ServiceReport]:
        """Return the reports of the services that run now, by name and instance.

        Raises:
            BusUnreachable: JetStream does not answer.
        """
        found = await values_of(
            self._bus.js, await self._open(), SERVICE_BUCKET, ServiceReport, "the registry of services"
        )
        return sorted(found, key=lambda each: (each.name, each.instance))

    async def leave(self, reports: Sequence[ServiceReport]) -> None:
        """Take reports out, so that nobody waits for their end; best effort."""
        with suppress(*KV_ERRORS):
            bucket = await self._open()
            for each in reports:
                await bucket.purge(_key(each))

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await open_bucket(
                self._bus.js,
                SERVICE_BUCKET,
                "which services run, and how they are",
                ttl_s=SILENT_AFTER_S,
                replicas=self._bus.replicas,
            )
        return self._bucket


def _key(report: ServiceReport) -> str:
    return f"{token(report.name)}.{token(report.instance)}"

"""The components of the stack, in the order in which they are shown."""

from __future__ import annotations

import os
from collections.abc import Iterable

from market_pipeline.errors import LocalStackError
from market_pipeline.local.components.base import DEFAULT_MODULE, Component, Context, ProbeFailed, ProbeUnknown
from market_pipeline.local.components.clickhouse import ClickHouse
from market_pipeline.local.components.dagster import DagsterCode, DagsterDaemon, DagsterWebserver
from market_pipeline.local.components.nats import Nats
from market_pipeline.local.components.postgres import Postgres
from market_pipeline.local.components.simulator import Simulator
from market_pipeline.settings import POLYGON_KEY

COMPONENTS: dict[str, type[Component]] = {
    kind.name: kind for kind in (Nats, Postgres, ClickHouse, Simulator, DagsterCode, DagsterWebserver, DagsterDaemon)
}
DAGSTER = ("dagster-code", "dagster-webserver", "dagster-daemon")

__all__ = [
    "COMPONENTS",
    "DAGSTER",
    "DEFAULT_MODULE",
    "Component",
    "Context",
    "ProbeFailed",
    "ProbeUnknown",
    "select",
]


def select(only: Iterable[str] | None = None, *, dagster: bool = True) -> tuple[str, ...]:
    """Return the components to run, in order: those named (`dagster` means all three) and what they need.

    Without a list: all of them; the simulator only when POLYGON_API_KEY does not name the real vendor.

    Raises:
        LocalStackError: a name that is not a component.
    """
    if only is None:
        wanted = set(COMPONENTS) - ({"simulator"} if os.environ.get(POLYGON_KEY) else set())
    else:
        named = [part for name in only for part in (DAGSTER if name == "dagster" else (name,))]
        unknown = [name for name in named if name not in COMPONENTS]
        if unknown:
            raise LocalStackError(f"unknown component {unknown[0]!r}; there are: dagster, {', '.join(COMPONENTS)}")
        wanted = set(named)
    if not dagster:
        wanted -= set(DAGSTER)
    if "dagster-daemon" in wanted:
        wanted.add("dagster-webserver")  # through which the daemon's heartbeats are read
    pending = list(wanted)
    while pending:
        for needed in COMPONENTS[pending.pop()].after:
            if needed not in wanted:
                wanted.add(needed)
                pending.append(needed)
    return tuple(name for name in COMPONENTS if name in wanted)

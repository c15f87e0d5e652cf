"""What the supervisor knows of a component."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from market_pipeline.errors import LocalStackError
from market_pipeline.local.layout import Home
from market_pipeline.local.ports import LOOPBACK
from market_pipeline.local.processes import Launch
from market_pipeline.settings import Settings

DEFAULT_MODULE = "market_pipeline.definitions"


class ProbeFailed(LocalStackError):
    """The component does not do its work (yet); the message says what it answered.

    `final`: waiting will not help, a person has to mend something.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class ProbeUnknown(LocalStackError):
    """The component cannot be asked now, for a reason that is not its own."""


@dataclass(frozen=True)
class Context:
    """What every component is built from.

    `module` holds Dagster's definitions; `project_dir` is the folder of workspace.yaml, if the stack has one.
    """

    home: Home
    ports: dict[str, int]
    passwords: dict[str, str]
    settings: Settings
    module: str = DEFAULT_MODULE
    project_dir: Path | None = None


class Component:
    """One supervised server; methods block and are called in a worker thread, except `launch`.

    Client libraries are imported by the methods that need them: the first server then starts a second sooner, and
    `market-pipeline status` answers at once.

    `after`: components that must be ready first. `packages`: wheels that must be installed. `port_names`: its ports.
    `launches_runs`: its descendants are runs of Dagster, which outlive its crash and end with the stack.
    """

    name: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()
    port_names: ClassVar[tuple[str, ...]] = ()
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    launches_runs: ClassVar[bool] = False
    ready_timeout_s: ClassVar[float] = 30.0
    stop_timeout_s: ClassVar[float] = 10.0

    def __init__(self, context: Context) -> None:
        self.context = context
        self.home = context.home
        self.started_at = 0.0

    @property
    def port(self) -> int:
        """The component's own port."""
        return self.context.ports[self.port_names[0]]

    @property
    def address(self) -> str:
        """Where users reach it; empty when they don't."""
        return f"{LOOPBACK}:{self.port}"

    def prepare(self) -> None:
        """Make what must exist before the server starts: folders, configuration. Called before every start."""

    def launch(self) -> Launch:
        """Return how to start the server."""
        raise NotImplementedError

    def bootstrap(self) -> None:
        """Make what must exist inside the running server (roles, databases); idempotent.

        Raises:
            ProbeFailed: the server is not that far yet.
        """

    def probe(self, *, deep: bool) -> None:
        """Ask the server to do its work; `deep` also writes.

        Raises:
            ProbeFailed, ProbeUnknown; any other exception counts as ProbeFailed.
        """
        raise NotImplementedError

    def clean(self) -> None:
        """Remove what only a running server needs. Called after the last stop."""

"""What the supervisor tells others: `run/state.json`, replaced at every change."""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from market_pipeline.errors import LocalStackError
from market_pipeline.local.layout import Home, write_private

Phase = Literal["starting", "running", "stopping", "stopped"]
Condition = Literal["waiting", "starting", "ready", "unhealthy", "restarting", "failed", "stopping", "stopped"]
SETTLED: frozenset[str] = frozenset({"ready", "unhealthy", "failed"})


class ComponentState(msgspec.Struct):
    """One component; times are seconds since the epoch, `probe_ms` is the duration of the last probe.

    `restarts` counts starts after the first; `last_exit` says how the process before this one ended; `detail` is what
    is wrong now.
    """

    name: str
    state: Condition = "waiting"
    pid: int | None = None
    address: str = ""
    started_at: float | None = None
    ready_at: float | None = None
    restarts: int = 0
    detail: str = ""
    last_exit: str = ""
    probe_ms: float | None = None
    probed_at: float | None = None


class StackState(msgspec.Struct):
    """The whole stack, as its supervisor (process `pid`) sees it."""

    pid: int
    phase: Phase = "starting"
    started_at: float = msgspec.field(default_factory=time.time)
    updated_at: float = 0.0
    module: str = ""
    project_dir: str = ""
    components: list[ComponentState] = []

    @property
    def settled(self) -> bool:
        """Every component is ready, or needs a person."""
        return all(component.state in SETTLED for component in self.components)

    @property
    def healthy(self) -> bool:
        """Every component does its work."""
        return all(component.state == "ready" for component in self.components)

    def component(self, name: str) -> ComponentState | None:
        """Return one component's state, None when the stack does not run it."""
        return next((component for component in self.components if component.name == name), None)


def write_state(home: Home, state: StackState) -> None:
    """Replace the state file."""
    state.updated_at = time.time()
    write_private(home.state_file, msgspec.json.encode(state).decode(), durable=False)


def read_state(home: Home) -> StackState | None:
    """Read the state file; None when there is none.

    Raises:
        LocalStackError: the file belongs to another user or is not a state.
    """
    try:
        return msgspec.json.decode(home.state_file.read_bytes(), type=StackState)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise LocalStackError(f"{home.root} belongs to another user: run as its owner") from error
    except msgspec.DecodeError as error:
        raise LocalStackError(
            f"{home.state_file} is damaged: `market-pipeline down`, then `market-pipeline up`"
        ) from error

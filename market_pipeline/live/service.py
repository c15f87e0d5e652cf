"""What a live service is to those who run it: a name, a proof that it can work, a run, its health."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

UNHEALTHY_AFTER_S = 30.0
"""Input that waits for so long without any output makes a service unhealthy, whatever else it says."""

Fact = int | float | str


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """The state of a service.

    state: starting, standby (another one holds the lease), rebuilding, running, waiting (for something that is away),
        stopped or failed (a person has to mend something).
    problems: why it is not healthy, in words a person can act on; empty when it is.
    facts: flat numbers and texts, counters since the start and gauges of now, for logs, metrics and the UI.
    """

    name: str
    state: str
    problems: tuple[str, ...] = ()
    facts: Mapping[str, Fact] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class LiveService(Protocol):
    """One long-running part of the live road. It opens its own connections and closes them when its run ends."""

    @property
    def name(self) -> str:
        """The name under which it is run, shown and counted."""
        ...

    async def probe(self) -> dict[str, float]:
        """Prove that everything needed does its work; return the milliseconds that each part took.

        Raises:
            MarketPipelineError: the typed error of the part that cannot do its work.
        """
        ...

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then finish what is under way. Outages are waited for, never raised.

        Raises:
            MarketPipelineError: terminal: only a person can mend it; or the connection is closed for good.
        """
        ...

    def health(self) -> ServiceHealth:
        """Return the state of now; never blocks."""
        ...

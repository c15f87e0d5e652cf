"""What a supervisor is told of an aggregator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from market_pipeline.live.service import UNHEALTHY_AFTER_S

CHECKPOINT_OLD_S = 30.0

State = Literal["standby", "rebuilding", "running", "stopped"]


@dataclass(frozen=True, slots=True)
class AggregatorHealth:
    """The state of an aggregator.

    problems: why it is not healthy, in words; empty when it is. state: `standby` while another one holds the lease of
    these symbols; `rebuilding` until it is where its checkpoint was.
    pending: batches of ticks that wait in the stream. unpublished: batches of bars that JetStream has not taken yet.
    stuck_s: how long either waits without progress. behind_s: age of what is proven of the slowest symbol; None before
        its first batch. checkpoint_age_s: None before the first.
    Counts since it took over: ticks that made bars; those late but in time, late beyond the lateness, ahead of their
    own arrival, malformed, and of crossed quotes; batches of ticks that came twice, of a lost lease, or unreadable;
    bars published for the first time, and again as revisions; losses recorded, by cause.
    """

    state: State
    problems: tuple[str, ...]
    name: str
    symbols: int
    epoch: int
    pending: int
    unpublished: int
    stuck_s: float
    behind_s: float | None
    checkpoint_age_s: float | None
    batches: int
    ticks: int
    late: int
    late_dropped: int
    ahead: int
    malformed: int
    crossed: int
    superseded: int
    duplicates: int
    fenced: int
    unreadable: int
    bars: int
    revisions: int
    losses: dict[str, int]
    losses_waiting: int

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def problems_of(
    state: State,
    *,
    bus_connected: bool,
    lease_held: bool,
    pending: int,
    unpublished: int,
    stuck_s: float,
    checkpoint_age_s: float | None,
    losses_waiting: int,
    unhealthy_after_s: float = UNHEALTHY_AFTER_S,
) -> list[str]:
    """Return what is wrong, in words a person can act on."""
    problems = [] if bus_connected else ["no connection to NATS"]
    if state == "stopped":
        return [*problems, "not running"]
    if state == "standby":
        return problems
    if not lease_held:
        problems.append("the lease is not held")
    if stuck_s > unhealthy_after_s:
        problems.append(
            f"{pending} batches of ticks and {unpublished} of bars wait without progress for {stuck_s:.0f} s"
        )
    if checkpoint_age_s is not None and checkpoint_age_s > max(unhealthy_after_s, CHECKPOINT_OLD_S):
        problems.append(f"no checkpoint for {checkpoint_age_s:.0f} s: a restart would take long")
    if losses_waiting:
        problems.append(f"{losses_waiting} losses are not recorded yet")
    return problems

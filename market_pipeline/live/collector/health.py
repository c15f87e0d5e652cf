"""What a supervisor is told of a collector."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from market_pipeline.live.service import UNHEALTHY_AFTER_S
from market_pipeline.vendors.polygon.stream import PolygonStream

AWAY_AFTER_S = 30.0
CLOCK_ERROR_S = 2.0
MOST_NAMES = 5

State = Literal["standby", "running", "stopped"]


@dataclass(frozen=True, slots=True)
class StreamHealth:
    """The state of one market's connection; ages in seconds.

    refused: the vendor's words when it refuses the key. mute: symbols that are acknowledged and of which nothing came.
    clock_error_s: how far this machine's clock is ahead of the
    vendor's, or behind.
    """

    market: str
    connected: bool
    frame_age_s: float
    market_open: bool
    connects: int
    ended: dict[str, int]
    frames: int
    ticks: int
    bad_events: int
    unknown_events: dict[str, int]
    unreadable_frames: int
    acks_missing: tuple[str, ...]
    refused: str = ""
    mute: tuple[str, ...] = ()
    clock_error_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CollectorHealth:
    """The state of a collector.

    problems: why it is not healthy, in words; empty when it is. state: `standby` while another holds the lease of the
        set of symbols called `name`.
    queue: ticks that wait or are being published, `queue_limit` at most; `stuck_s`: how long those of one symbol wait
        without progress, at most. spool: facts of the spool and its breaker. losses: recorded by cause;
        `losses_waiting` are known but not kept yet; `gaps`: symbols whose events are being lost now.
    """

    state: State
    problems: tuple[str, ...]
    name: str
    collector_id: str
    epoch: int
    streams: tuple[StreamHealth, ...]
    queue: int
    queue_limit: int
    stuck_s: float
    batches: int
    ticks: int
    heartbeats: int
    dropped: int
    losses: dict[str, int]
    losses_waiting: int
    gaps: tuple[str, ...]
    spool: Mapping[str, int | float | str] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def stream_health(stream: PolygonStream, market_open: bool, refused: str, mute: tuple[str, ...] = ()) -> StreamHealth:
    """Return the state of a market's connection."""
    counters = stream.counters
    return StreamHealth(
        market=stream.topics.market,
        connected=stream.connected,
        frame_age_s=round(time.monotonic() - stream.frame_at, 3),
        market_open=market_open,
        connects=counters.connects,
        ended=dict(counters.ended),
        frames=counters.frames,
        ticks=counters.ticks,
        bad_events=counters.bad,
        unknown_events=dict(counters.unknown),
        unreadable_frames=counters.unreadable,
        acks_missing=tuple(sorted(stream.unacknowledged)),
        refused=refused,
        mute=mute,
        clock_error_s=stream.clock_error_ms / 1000,
    )


def problems_of(
    state: State,
    streams: Sequence[StreamHealth],
    *,
    bus_connected: bool,
    lease_held: bool,
    waits_s: Mapping[str, float],
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
    if stuck := {symbol: seconds for symbol, seconds in waits_s.items() if seconds > unhealthy_after_s}:
        problems.append(f"ticks wait without progress for {max(stuck.values()):.0f} s: {_shown(stuck)}")
    for each in streams:
        if each.refused:
            problems.append(f"{each.market}: {each.refused}")
        elif not each.connected and each.market_open and each.frame_age_s > AWAY_AFTER_S:
            problems.append(f"{each.market}: not connected for {each.frame_age_s:.0f} s")
        elif each.connected and each.acks_missing:
            missing = each.acks_missing
            problems.append(f"{each.market}: {len(missing)} subscriptions not acknowledged: {_shown(missing)}")
        if each.mute:
            problems.append(
                f"{each.market}: {len(each.mute)} symbols mute since they were subscribed: {_shown(each.mute)}"
            )
    error_s = max((each.clock_error_s for each in streams), key=abs, default=0.0)
    if abs(error_s) > CLOCK_ERROR_S:
        way = "ahead of" if error_s > 0 else "behind"
        problems.append(f"this machine's clock is {abs(error_s):.0f} s {way} the vendor's: set it (NTP)")
    if losses_waiting:
        problems.append(f"{losses_waiting} losses are not recorded yet")
    return problems


def _shown(names: Iterable[str]) -> str:
    first = list(islice(names, MOST_NAMES + 1))
    return ", ".join(first[:MOST_NAMES]) + (", …" if len(first) > MOST_NAMES else "")

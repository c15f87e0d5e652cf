"""When a live run is launched, left alone, or declared dead: pure rules over what Dagster's storage says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

BEAT_TAG = "market_pipeline/live_beat"
"""Run tag with the epoch seconds of the last sign of life."""
BEAT_EVERY_S = 5.0
STALE_S = 20.0
"""A started run that has not beaten for so long is dead, whatever its status says."""
QUICK_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 15.0, 300.0
SENSOR_EVERY_S = 5
LONGEST_GAP_S = 2.0 * SENSOR_EVERY_S
"""Between two looks no more than this counts as silence of a run: the storage may have been away for the rest."""


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A run of live_ingestion; times are epoch seconds, None for what has not happened."""

    run_id: str
    status: str
    started: float | None = None
    ended: float | None = None
    beat: float | None = None


@dataclass(frozen=True, slots=True)
class SensorState:
    """What the sensor remembers: runs launched so far, its last look, and of each run its last beat and its silence.

    silences: by run id the epoch seconds of the last beat, and the seconds of silence that were seen since.
    """

    launches: int = 0
    looked: float = 0.0
    silences: dict[str, tuple[float, float]] = field(default_factory=dict)

    @staticmethod
    def read(cursor: str | None) -> SensorState:
        """Read a cursor; anything else than our own begins anew."""
        try:
            read = SensorState(**json.loads(cursor or "{}"))
            silences = {run_id: (float(beat), float(seconds)) for run_id, (beat, seconds) in read.silences.items()}
            return replace(read, silences=silences)
        except (ValueError, TypeError, AttributeError):
            return SensorState()

    def text(self) -> str:
        """Return the cursor."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do: runs to declare failed, whether to launch one, why, and what to remember."""

    dead: tuple[str, ...]
    launch: bool
    reason: str
    state: SensorState


def decide(running: Sequence[LiveRun], finished: Sequence[LiveRun], state: SensorState, now: float) -> Decision:
    """Decide about runs in progress (`running`) and those that ended last (`finished`, newest first).

    Beats that were missed while the storage was away do not count: the sensor could not look then either, so of the
    time between two looks no more than LONGEST_GAP_S is silence, and a run is dead after more than STALE_S of it.
    """
    gap = now - state.looked
    dead: list[str] = []
    alive: list[str] = []
    silences: dict[str, tuple[float, float]] = {}
    for run in running:
        beat = run.beat or run.started or now
        known, silent = state.silences.get(run.run_id, (None, 0.0))
        if known == beat:
            silent += min(gap, LONGEST_GAP_S)
        else:
            silent = now - beat if gap <= LONGEST_GAP_S else min(now - beat, LONGEST_GAP_S)
        if run.status == "STARTED" and silent > STALE_S:
            dead.append(run.run_id)
        else:
            silences[run.run_id] = (beat, silent)
            alive.append(_described(run, now))
    state = replace(state, looked=now, silences=silences)
    if alive:
        return Decision(tuple(dead), False, "; ".join(alive), state)
    if not dead and (pause := _pause(finished, now)) > 0:
        reason = f"the last runs ended at once: the next one is launched in {pause:.0f} s (see the last run's error)"
        return Decision((), False, reason, state)
    return Decision(tuple(dead), True, "no live run is in progress", replace(state, launches=state.launches + 1))


def _pause(finished: Sequence[LiveRun], now: float) -> float:
    """Return the seconds to wait: longer with every run in a row that failed within a minute."""
    quick = 0
    for run in finished:
        lived = (run.ended or now) - (run.started or run.ended or now)
        if run.status != "FAILURE" or lived > QUICK_S:
            break
        quick += 1
    if quick < 2:  # one fall is answered at once
        return 0.0
    pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (quick - 2))
    return max(0.0, (finished[0].ended or now) + pause - now)


def _described(run: LiveRun, now: float) -> str:
    if run.status == "STARTED" and run.beat is not None:
        return f"run {run.run_id[:8]} is alive, its last beat was {now - run.beat:.0f} s ago"
    return f"run {run.run_id[:8]} is {run.status.lower()}"

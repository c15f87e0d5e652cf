"""The oracle itself: what it takes for an excuse, and what it does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from market_pipeline_tests.chaos.oracle import Verdict, judge_losses
from market_pipeline_tests.chaos.world import ChaosWorld

START = datetime(2026, 11, 24, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("losses", "wrong"),
    [
        ([], ""),
        ([(at(-60), at(0)), (at(29), at(35)), (at(100), at(160))], ""),
        ([(at(15), at(45))], ""),  # a margin of 20 s on the wall is ten minutes of the vendor's
        ([(at(70), at(90))], ""),  # a busy machine may lose something by itself
        ([(at(50), at(66)), (at(70), at(86))], "time in losses beside faults"),
        ([(at(0), at(96))], "time in recorded losses"),
    ],
)
def test_a_recorded_loss_excuses_what_a_fault_can_have_cost(
    tmp_path: Path, losses: list[tuple[datetime, datetime]], wrong: str
) -> None:
    world = ChaosWorld(tmp_path, START, speed=30.0)
    world.live_since = at(0)
    world.losing = [(at(30), at(31)), (at(99), at(100))]
    verdict = Verdict()
    judge_losses(world, "BTCUSD", losses, at(100), verdict)
    assert bool(verdict.wrong) == bool(wrong)
    assert any(wrong in sentence for sentence in verdict.wrong) or not wrong

"""A bounded set of chaos for every run of the suite: fixed seeds, every fault once or more, the one oracle.

`make chaos SEED=… MINUTES=…` runs the same for as long as you like, with any seed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from market_pipeline_tests.chaos.__main__ import chaos
from market_pipeline_tests.chaos.faults import FAULTS

pytestmark = pytest.mark.timeout(600)

GROUPS = {
    "kills": ["kill_live", "kill_nats", "kill_clickhouse", "kill_postgres", "second_bridge"],
    "outages": ["stop_nats", "torn_spool", "wipe_nats", "stop_postgres", "slow_clickhouse", "freeze_nats", "full_disk"],
    "refusals": ["poison", "read_only_clickhouse", "kill_unacknowledged"],
    "vendor": [
        "cut_stream",
        "silence_stream",
        "disorder",
        "rest_storm",
        "clock_jump",
        "second_collector",
        "freeze_live",
    ],
}


def test_every_fault_is_tried() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_after_faults_and_repair_nothing_is_lost_and_nothing_comes_twice(group: str, tmp_path: Path) -> None:
    names = GROUPS[group]
    verdict, tried = chaos(tmp_path, 7, 40, names, calm_s=(0.5, 3.0))
    print(tried, verdict.numbers)
    assert verdict.wrong == [], f"after {tried}"
    assert sum(tried.values()) >= len(names) - 1
    assert all(count > 0 for name, count in verdict.numbers.items() if name.endswith("minutes"))

"""`make chaos SEED=7 MINUTES=10`: faults at random moments for so long, then repair, then the oracle."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from market_pipeline.history import load_minutes
from market_pipeline_tests.chaos.faults import FAULTS, HARMLESS, until_live
from market_pipeline_tests.chaos.oracle import Verdict, wait_until_whole
from market_pipeline_tests.chaos.world import SYMBOLS, ChaosWorld
from market_pipeline_tests.waiting import until

START = datetime(2026, 11, 24, 12, 34, 20, tzinfo=UTC)  # a Tuesday, in the middle of a minute, an hour and a day
REPAIR_S = 180.0


def chaos(
    folder: Path, seed: int, seconds: float, names: list[str], *, speed: float = 30.0, calm_s: tuple[float, float]
) -> tuple[Verdict, dict[str, int]]:
    """Run one world with faults of these kinds for so many seconds; return the oracle's word and what was tried."""
    rng = random.Random(seed)
    tried: dict[str, int] = {}
    with ChaosWorld(folder, START, speed=speed) as world:
        first = START.replace(hour=0, minute=0, second=0)
        load_minutes(
            world.settings,
            {key: [(first.date(), first.date() + timedelta(days=1))] for key in SYMBOLS},
            run_id="history",
            root_run_id="history",
            clock=world.clock.now,
        )
        world.refuse_poison()
        world.go_live()
        until_live(world)
        world.live_since = world.clock.now()
        world.losing.append((world.live_since, world.live_since))
        until(lambda: live_minutes(world) > 0, "no live minute came", 90)
        ends = time.monotonic() + seconds
        order: list[str] = []
        while time.monotonic() < ends:
            time.sleep(rng.uniform(*calm_s))
            if not names:
                continue
            if not order:  # each kind comes before one comes again
                order = rng.sample(names, len(names))
            name = order.pop()
            began = world.clock.now()
            print(f"  {began:%H:%M:%S} {name}", flush=True)
            try:
                FAULTS[name](world, rng)
            except BaseException:
                print((folder / "live.log").read_text(errors="replace")[-20_000:])
                raise
            if name not in HARMLESS:
                world.losing.append((began, world.clock.now()))
            tried[name] = tried.get(name, 0) + 1
            world.keep_live()
        end = world.clock.now().replace(second=0, microsecond=0)
        verdict = wait_until_whole(world, first, end, REPAIR_S)
        if verdict.wrong:
            print((folder / "live.log").read_text(errors="replace")[-6000:])
    return verdict, tried


def live_minutes(world: ChaosWorld) -> int:
    """Count the complete live minutes."""
    from market_pipeline.stores.clickhouse import connect

    client = connect(world.settings.clickhouse)
    try:
        found = client.rows(
            "SELECT count() FROM bars FINAL WHERE source = 'live_aggregated' AND timeframe = '1m' AND complete"
        )
        return int(found[0][0])
    finally:
        client.close()


def main() -> None:
    """Run, print what was tried and found, and fail where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--faults", nargs="*", choices=sorted(FAULTS), default=sorted(FAULTS))
    parser.add_argument("--keep", type=Path, help="keep the world's files here")
    options = parser.parse_args()
    print(f"chaos: SEED={options.seed} MINUTES={options.minutes:g}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = options.keep or Path(temporary)
        verdict, tried = chaos(folder, options.seed, options.minutes * 60, options.faults, calm_s=(1.0, 6.0))
    print("tried:", ", ".join(f"{name} {count}" for name, count in sorted(tried.items())))
    print("found:", ", ".join(f"{name} {count:,}" for name, count in verdict.numbers.items()))
    for sentence in verdict.wrong:
        print("WRONG:", sentence)
    print(
        f"{sum(tried.values())} faults, SEED={options.seed}: {'NOT EQUAL' if verdict.wrong else 'equal to a clean run'}"
    )
    sys.exit(bool(verdict.wrong))


if __name__ == "__main__":
    main()

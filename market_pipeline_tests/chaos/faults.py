"""The faults of a chaos run: each does its harm, lasts, and is over; a seed decides which, when and for how long."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from market_pipeline.bus.spool import FolderStatus, spool_root, spool_status
from market_pipeline.bus.spool.folder import segments_of
from market_pipeline_tests.chaos.world import SYMBOLS, ChaosWorld, LiveProcess
from market_pipeline_tests.waiting import until

Fault = Callable[[ChaosWorld, random.Random], None]
SPOOLED = 30  # records, before it is worth damaging one


def _pause(rng: random.Random, low: float, high: float) -> None:
    time.sleep(rng.uniform(low, high))


def until_live(world: ChaosWorld) -> None:
    """Wait until every symbol is streamed; what ended by itself meanwhile is started again."""

    def live() -> bool:
        world.keep_live()
        of_market = world.vendor.stream_stats()["subscriptions"]
        lanes = [re.sub(r"\W", "", lane) for lanes in of_market.values() for lane in lanes]
        return all(any(lane.endswith(key) for lane in lanes) for key in SYMBOLS)

    until(live, "not live", 60)


def kill_live(world: ChaosWorld, rng: random.Random) -> None:
    """Kill -9 a live process and start it again."""
    world.kill_live(rng.choice(world.live))


def kill_nats(world: ChaosWorld, rng: random.Random) -> None:
    """Kill -9 the broker and start it again at once."""
    world.nats.restart()


def stop_nats(world: ChaosWorld, rng: random.Random) -> None:
    """Keep the broker away for a while: ticks go to the spool."""
    world.nats.kill()
    try:
        _pause(rng, 3, 8)
    finally:
        world.nats.start()


def torn_spool(world: ChaosWorld, rng: random.Random) -> None:
    """Kill all that is live while ticks are on its disk, and damage them there: a byte, or the end of a file."""

    def of_ticks() -> list[FolderStatus]:
        return [each for each in spool_status(spool_root(world.settings)) if each.name.startswith("collector")]

    # without a term of its lease a collector has nothing to spool
    until_live(world)
    world.nats.kill()
    try:
        until(lambda: sum(each.records for each in of_ticks()) >= SPOOLED, "nothing was spooled", 60)
        for each in world.live:
            each.process.kill()
            each.process.wait()
        segments = [segment for folder in of_ticks() for segment in segments_of(folder.path)]
        segment = max(segments, key=lambda each: each.stat().st_size)
        data = bytearray(segment.read_bytes())
        if rng.random() < 0.7:
            data[rng.randrange(len(data) // 4, len(data) * 3 // 4)] ^= 0x55
        else:
            del data[-rng.randint(1, 40) :]
        segment.write_bytes(data)
    finally:
        world.nats.start()
    world.keep_live()


def full_disk(world: ChaosWorld, rng: random.Random) -> None:
    """Leave no room on the disk for the spool while the broker is away."""
    world.write_settings(spool={"min_free_bytes": 2**60})
    try:
        world.restart_live()
        until_live(world)
        world.nats.kill()
        try:
            _pause(rng, 2, 5)
        finally:
            world.nats.start()
        _pause(rng, 0.5, 3)  # they go on by themselves, without a spool
    finally:
        world.write_settings()
    world.restart_live()


def kill_unacknowledged(world: ChaosWorld, rng: random.Random) -> None:
    """Kill -9 all that is live between what it has stored and the acknowledgement, which a frozen broker never saw."""
    world.nats.pause()
    try:
        _pause(rng, 0.3, 1.5)
        for each in world.live:
            each.process.kill()
            each.process.wait()
    finally:
        world.nats.resume()
    world.keep_live()


def poison(world: ChaosWorld, rng: random.Random) -> None:
    """Put messages among the others that cannot be stored, one of each kind."""
    world.publish_poison(rng)


def read_only_clickhouse(world: ChaosWorld, rng: random.Random) -> None:
    """Let the bar store answer every question and refuse every row."""
    world.refuse_rows(True)
    try:
        _pause(rng, 1, 5)
    finally:
        world.refuse_rows(False)


def freeze_nats(world: ChaosWorld, rng: random.Random) -> None:
    """Let the broker stand still: connections stay open, and nothing answers."""
    world.nats.pause()
    try:
        _pause(rng, 2, 5)
    finally:
        world.nats.resume()


def wipe_nats(world: ChaosWorld, rng: random.Random) -> None:
    """Start the broker with an empty store: everything that was acknowledged and not yet stored is gone."""
    world.wipe_nats()


def kill_clickhouse(world: ChaosWorld, rng: random.Random) -> None:
    """Kill -9 the bar store, now and then in the middle of an insert, and start it again after a while."""
    world.kill_clickhouse()
    try:
        _pause(rng, 0, 4)
    finally:
        world.start_clickhouse()


def slow_clickhouse(world: ChaosWorld, rng: random.Random) -> None:
    """Let the bar store stand still again and again."""
    for _ in range(rng.randint(2, 4)):
        world.freeze_clickhouse(True)
        try:
            _pause(rng, 0.3, 1.5)
        finally:
            world.freeze_clickhouse(False)
        _pause(rng, 0.1, 0.5)


def kill_postgres(world: ChaosWorld, rng: random.Random) -> None:
    """Kill -9 the tick store; its supervisor starts it again."""
    world.kill_postgres()


def stop_postgres(world: ChaosWorld, rng: random.Random) -> None:
    """Keep the tick store away for a while: ticks wait in their stream."""
    world.stop_postgres()
    try:
        _pause(rng, 1, 5)
    finally:
        world.start_postgres()


def cut_stream(world: ChaosWorld, rng: random.Random) -> None:
    """Let the vendor's stream end in one of its ways, once or several times."""
    kind = rng.choice(["close_clean", "close_unclean", "half_frame", "max_connections", "auth_timeout"])
    market = rng.choice(["forex", "crypto"])
    options = {"seconds": 0.5} if kind == "auth_timeout" else {}
    world.vendor.stream_fault(kind, market=market, times=rng.randint(1, 3), **options)
    if kind in ("max_connections", "auth_timeout"):
        world.vendor.stream_fault("close_unclean", market=market)
    _pause(rng, 1, 3)


def silence_stream(world: ChaosWorld, rng: random.Random) -> None:
    """Let the stream fall silent, pings included, for longer than the watchdog waits."""
    world.vendor.stream_fault("silence", market=rng.choice(["forex", "crypto"]), seconds=8, pongs=False)
    _pause(rng, 6, 9)


def disorder(world: ChaosWorld, rng: random.Random) -> None:
    """Let events overtake each other, by a few places."""
    number = world.vendor.stream_fault("out_of_order", share=0.2, positions=2, seed=rng.randint(0, 1000))
    try:
        _pause(rng, 2, 4)
    finally:
        world.vendor.clear_stream_faults(number)


def rest_storm(world: ChaosWorld, rng: random.Random) -> None:
    """Let the vendor's REST refuse, fail and answer with nothing for a while."""
    kind = rng.choice(["rate_limited", "server_error", "null_results", "page_loop", "cut_body", "drop_connection"])
    number = world.vendor.add_fault(kind, times=rng.randint(2, 6))
    try:
        _pause(rng, 2, 4)
    finally:
        world.vendor.clear_faults(number)


def clock_jump(world: ChaosWorld, rng: random.Random) -> None:
    """Let the clock of our machine jump ahead or back, by seconds or minutes, and be set right."""
    file = world.home / "clock_offset"
    file.write_text(f"{rng.choice([-1, 1]) * rng.choice([rng.uniform(5, 20), rng.uniform(20, 600)]):.1f}")
    try:
        _pause(rng, 1, 4)
    finally:
        file.write_text("")


def second_bridge(world: ChaosWorld, rng: random.Random) -> None:
    """Let two bridges share the work for a while; the second one is killed."""
    _beside(world, rng, ("bridge", "ticks"))


def second_collector(world: ChaosWorld, rng: random.Random) -> None:
    """Let a second collector and aggregator stand by, and take over when the first is killed."""
    _beside(world, rng, ("collector", "aggregator"))


def freeze_live(world: ChaosWorld, rng: random.Random) -> None:
    """Stop a live process for longer than its lease, and let it wake up beside its successor."""
    victim = rng.choice(world.live)
    successor = world.start_live(("collector", "aggregator"))
    victim.process.send_signal(signal.SIGSTOP)
    try:
        _pause(rng, 4, 7)
    finally:
        victim.process.send_signal(signal.SIGCONT)
    _pause(rng, 1, 2)
    _end(world, successor)


def _beside(world: ChaosWorld, rng: random.Random, names: tuple[str, ...]) -> None:
    second = world.start_live(names)
    _pause(rng, 5, 8)
    if rng.random() < 0.5:
        first = rng.choice([each for each in world.live if each is not second])
        world.kill_live(first)
        _pause(rng, 4, 6)
    _end(world, second)


def _end(world: ChaosWorld, one: LiveProcess) -> None:
    one.process.kill()
    one.process.wait()
    with suppress(ValueError):
        world.live.remove(one)


# They take no tick from anybody: what they stop comes later. Every other fault may.
HARMLESS = frozenset(
    {
        "poison",
        "read_only_clickhouse",
        "kill_clickhouse",
        "slow_clickhouse",
        "kill_postgres",
        "stop_postgres",
        "disorder",
        "rest_storm",
    }
)

FAULTS: dict[str, Fault] = {
    each.__name__: each
    for each in (
        kill_live,
        kill_nats,
        stop_nats,
        torn_spool,
        full_disk,
        kill_unacknowledged,
        poison,
        read_only_clickhouse,
        freeze_nats,
        wipe_nats,
        kill_clickhouse,
        slow_clickhouse,
        kill_postgres,
        stop_postgres,
        cut_stream,
        silence_stream,
        disorder,
        rest_storm,
        clock_jump,
        second_bridge,
        second_collector,
        freeze_live,
    )
}

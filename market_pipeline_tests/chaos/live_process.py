"""Live services in a process of their own, on a fast clock: `python -m … HOME CLOCK NAME…`; to be killed.

What the collector allows for events that come late is time of the wall: a vendor and a network are not slower because a
test lets days pass in minutes. So these margins grow with the clock's speed, and nothing else of the product changes.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

from market_pipeline_tests.chaos.clock import FastClock, WrongClock


def scale_margins(speed: float) -> None:
    """Let the margins be as long on the wall as they are at normal speed; before anything else reads them."""
    from market_pipeline.bus import tick_envelope

    tick_envelope.LATE *= speed
    tick_envelope.LOSS_MARGIN *= speed
    from market_pipeline import steady
    from market_pipeline.vendors.polygon.stream import client

    for module in (steady, client):
        module.passed_s = lambda: time.monotonic() * speed  # type: ignore[attr-defined]
    client.PONG_PROVES_LESS_MS = round(client.PONG_PROVES_LESS_MS * speed)


async def run(home: Path, clock: WrongClock, names: list[str]) -> None:
    """Run until SIGTERM."""
    from market_pipeline.live.build import build_services
    from market_pipeline.live.supervisor import LiveSupervisor
    from market_pipeline.settings import load_settings

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = load_settings(home)
    services = build_services(settings, names, run_id=f"chaos-{'-'.join(names) or 'all'}", clock=clock.now)
    await LiveSupervisor(settings, services).run(stop)


if __name__ == "__main__":
    fast = FastClock.read(sys.argv[2])
    scale_margins(fast.speed)
    folder = Path(sys.argv[1])
    asyncio.run(run(folder, WrongClock(fast, folder / "clock_offset"), sys.argv[3:]))

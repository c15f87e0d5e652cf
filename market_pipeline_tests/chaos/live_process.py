"""Live services in a process of their own, on a fast clock: `python -m … HOME CLOCK NAME…`; to be killed."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from market_pipeline.live.build import build_services
from market_pipeline.live.supervisor import LiveSupervisor
from market_pipeline.settings import load_settings
from market_pipeline_tests.chaos.clock import FastClock


async def run(home: Path, clock: FastClock, names: list[str]) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = load_settings(home)
    services = build_services(settings, names, run_id=f"chaos-{'-'.join(names) or 'all'}", clock=clock.now)
    await LiveSupervisor(settings, services).run(stop)


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), FastClock.read(sys.argv[2]), sys.argv[3:]))

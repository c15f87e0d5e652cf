"""Measure the stream: `python -m market_pipeline_tests.simulator.benchmark_stream`, about fifteen seconds."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import psutil

from market_pipeline.simulator.server import SimulatorProcess, start
from market_pipeline_tests.simulator.stream_client import StreamClient

_SECONDS = 2.5


def main() -> None:
    """Print the rate of a replay as fast as one client decodes, and what loads cost the simulator's process."""
    with start() as simulator:
        asyncio.run(_replay(simulator))
        for symbols, rate in ((10, 2_000), (1_000, 20), (10, 10_000)):
            asyncio.run(_load(simulator, symbols, rate))


async def _replay(simulator: SimulatorProcess) -> None:
    begin = datetime(2024, 3, 5, 10, tzinfo=UTC)
    simulator.set_now(begin)
    simulator.load(10, 1_000)
    async with StreamClient(simulator) as client:
        await client.enter("C.*")
        process = psutil.Process(simulator.pid)
        began, spent = time.perf_counter(), _cpu(process)
        simulator.advance(begin + timedelta(seconds=100))
        events = 0
        while events < 1_000_000:
            events += len(msgspec.json.decode(await client.ws.recv(decode=False)))
        elapsed = time.perf_counter() - began
        print(f"replay: {events / elapsed / 1000:.0f} thousand events/s, {_cost(process, spent, events)}")


async def _load(simulator: SimulatorProcess, symbols: int, rate: int) -> None:
    simulator.reset()
    simulator.load(symbols, rate)
    async with StreamClient(simulator) as client:
        await client.enter("C.*")
        warm = time.perf_counter() + 1.0
        while time.perf_counter() < warm:
            await client.ws.recv(decode=False)
        process = psutil.Process(simulator.pid)
        began, spent, events = time.perf_counter(), _cpu(process), 0
        delays: list[float] = []
        while time.perf_counter() - began < _SECONDS:
            got = msgspec.json.decode(await client.ws.recv(decode=False))
            events += len(got)
            delays += [time.time() * 1000 - event["t"] for event in got]
        middle, high, most = np.percentile(delays, (50, 99, 100))
        print(
            f"load of {symbols} x {rate}/s: {events / _SECONDS / 1000:.1f} thousand events/s, "
            f"{_cost(process, spent, events)}, delay {middle:.0f} ms (p99 {high:.0f}, at most {most:.0f})"
        )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _cost(process: psutil.Process, before: float, events: int) -> str:
    return f"{(_cpu(process) - before) / events * 1e6:.1f} µs of CPU an event"


if __name__ == "__main__":
    main()

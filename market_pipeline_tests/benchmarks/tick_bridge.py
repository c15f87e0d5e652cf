"""Measure the tick bridge: ticks a second from a TICKS that is full already into PostgreSQL, and the CPU they cost.

    python -m market_pipeline_tests.benchmarks.tick_bridge [batches] [ticks a batch ...]

The bridge runs alone in a process of its own: its CPU seconds are the service's, those of PostgreSQL and NATS are read
from the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import structlog
from nats.js.errors import NotFoundError

from market_pipeline.bus.session import open_bus
from market_pipeline.bus.streams import TICKS
from market_pipeline.live.tick_bridge import TickBridgeService
from market_pipeline.local.stack import Stack
from market_pipeline.market.ticks import check_tick_columns
from market_pipeline.settings import Settings
from market_pipeline_tests.live.tick_bridging import encoded, publish, settings_of
from market_pipeline_tests.servers import NatsProcess

SYMBOLS = 20


def _frame(symbol: str, rows: int, number: int) -> pl.DataFrame:
    began = int(datetime.now(UTC).timestamp() * 1000) - 60_000
    ts = began + number * rows + np.arange(rows)
    frame = pl.DataFrame(
        {
            "symbol": [symbol] * rows,
            "ts": pl.Series(ts).cast(pl.Datetime("ms", "UTC")),
            "kind": ["quote"] * rows,
            "bid": np.random.default_rng(number).normal(1.1, 0.01, rows).round(5),
            "exchange": ["48"] * rows,
        }
    )
    frame = frame.with_columns(ask=pl.col("bid") + 0.0001, received_at=pl.col("ts"))
    return check_tick_columns(frame, where="benchmark")


def _serve(settings: Settings) -> None:
    """Run the bridge until it is terminated."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    asyncio.run(TickBridgeService(settings).run(asyncio.Event()))


def _cpu_s(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            used = process.cpu_times()
            total += used.user + used.system
    return total


async def _measure(
    settings: Settings, nats: NatsProcess, postgres: list[psutil.Process], count: int, size: int
) -> None:
    async with open_bus(settings.nats, "benchmark") as bus:
        for stream in await bus.js.streams_info():
            await bus.js.delete_stream(stream.config.name or "")
        await bus.ensure_streams(scale=1 / 4)
        symbols = [f"BENCH{number:02d}" for number in range(SYMBOLS)]
        frames = {symbol: [_frame(symbol, size, number) for number in range(8)] for symbol in symbols}
        await publish(bus, (encoded(frames[symbols[n % SYMBOLS]][n // SYMBOLS % 8]) for n in range(count)))
        served = multiprocessing.get_context("spawn").Process(target=_serve, args=(settings,))
        served.start()
        try:
            assert served.pid is not None
            process, server = psutil.Process(served.pid), psutil.Process(nats.pid)
            first: tuple[float, float, float, float] | None = None
            while True:
                await asyncio.sleep(0.05)
                done = 0
                with contextlib.suppress(NotFoundError):
                    info = await bus.js.consumer_info(TICKS, "ticks")
                    done = info.ack_floor.stream_seq if info.ack_floor else 0
                children = [each for one in postgres for each in (one, *one.children(recursive=True))]
                now = (time.monotonic(), _cpu_s([process]), _cpu_s(children), _cpu_s([server]))
                if first is None and done:
                    first, begun = now, done
                if done >= count:
                    break
            assert first is not None
            took, own, theirs, broker = (b - a for a, b in zip(first, now, strict=True))
            moved = (count - begun) * size
            per = 1_000_000 / moved
            print(
                f"{size:4d} ticks a batch: {moved / took:9,.0f} ticks/s; CPU seconds per million ticks: "
                f"bridge {own * per:5.1f}, PostgreSQL {theirs * per:5.1f}, NATS {broker * per:5.1f}; "
                f"bridge at 20,000 ticks/s: {own / moved * 20_000:.2f} core",
                flush=True,
            )
        finally:
            served.terminate()
            served.join()


async def main(count: int, sizes: list[int]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        NatsProcess() as nats,
        Stack(Path(folder), components=("postgres",), die_with_parent=True) as stack,
    ):
        settings = settings_of(nats.settings, stack.settings.postgres)
        postgres = [each for each in psutil.process_iter() if _is_ours(each, folder)]
        for size in sizes:
            await _measure(settings, nats, postgres, count, size)


def _is_ours(process: psutil.Process, folder: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return "postgres" in process.name() and any(folder in each for each in process.cmdline())
    return False


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    given = [int(each.replace("_", "")) for each in sys.argv[1:]]
    asyncio.run(main(given[0] if given else 20_000, given[1:] or [25, 50, 250]))

"""What live ticks cost: `python -m market_pipeline_tests.benchmarks.live_ticks [--rate 20000] [--symbols 20]`.

A simulator under load, a NATS, a collector and an aggregator, each in a process of its own. Printed are the CPU seconds
that each spends on a million ticks, and how late bars of 1s reach the bus: the time from the end of their second.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Coroutine, Sequence
from datetime import date
from typing import Any

import numpy as np
import psutil
from nats.aio.msg import Msg
from pydantic import SecretStr

from market_pipeline.bus.envelope import BatchHeaders
from market_pipeline.bus.session import open_bus
from market_pipeline.bus.streams import TICKS
from market_pipeline.live.aggregator import Aggregator
from market_pipeline.live.collector import Collector
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import to_ms
from market_pipeline.settings import Settings, VendorSettings
from market_pipeline.simulator.server import start
from market_pipeline_tests.servers import NatsProcess, die_with_parent

WARM_S = 4.0


def main() -> None:
    """Run the load and print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=20_000, help="ticks a second over all symbols")
    parser.add_argument("--symbols", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--market", choices=("forex", "crypto"), default="forex")
    given = parser.parse_args()
    with start() as simulator, NatsProcess() as server:
        tickers = simulator.control.load(given.symbols, given.rate // given.symbols, market=given.market)
        settings = Settings(
            nats=server.settings,
            vendor=VendorSettings(base_url=simulator.base_url, api_key=SecretStr(simulator.api_key), plan="paid"),
        )
        instruments = [_instrument(ticker, given.market) for ticker in tickers]
        asyncio.run(_measure(settings, instruments, simulator, server, given.seconds))


async def _measure(
    settings: Settings, instruments: Sequence[Instrument], simulator: Any, server: NatsProcess, seconds: float
) -> None:
    late: list[int] = []

    async def heard(message: Msg) -> None:
        headers = BatchHeaders.from_nats(message.headers)
        late.append(time.time_ns() // 1_000_000 - to_ms(headers.end_ts) - 1000)

    async with open_bus(settings.nats, "benchmark") as bus:
        await bus.ensure_streams(scale=1 / 4)
        spawn = multiprocessing.get_context("spawn")
        secrets = (settings.nats.password.get_secret_value(), settings.vendor.api_key.get_secret_value())
        roles = {
            role: spawn.Process(target=_child, args=(role, settings.model_dump(), secrets, instruments), daemon=True)
            for role in ("collector", "aggregator")
        }
        for process in roles.values():
            process.start()
        processes = {role: psutil.Process(process.pid) for role, process in roles.items()}
        processes |= {"nats": psutil.Process(server.pid), "simulator": psutil.Process(simulator.pid)}
        first = await bus.nc.subscribe("market.*.tick")
        await first.next_msg(30)
        await first.unsubscribe()
        await asyncio.sleep(WARM_S)
        subscription = await bus.nc.subscribe("market.*.1s", cb=heard)
        before = {role: _cpu(process) for role, process in processes.items()}
        sent, state = simulator.control.stream_stats()["sent_total"], (await bus.js.stream_info(TICKS)).state
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        ticks = simulator.control.stream_stats()["sent_total"] - sent
        elapsed = time.perf_counter() - began
        now = (await bus.js.stream_info(TICKS)).state
        await subscription.unsubscribe()
        print(f"{ticks / elapsed:,.0f} ticks/s over {len(instruments)} symbols, {elapsed:.1f} s")
        for role, process in processes.items():
            print(f"{role:>11}: {(_cpu(process) - before[role]) / ticks * 1e6:6.1f} CPU seconds a million ticks")
        batches, size = now.messages - state.messages, now.bytes - state.bytes
        print(f"      TICKS: {batches / elapsed:,.0f} messages/s, {size / ticks:.0f} bytes a tick, {size} bytes")
        if late:
            middle, high, most = np.percentile(late, (50, 99, 100))
            print(f"    1s bars: {len(late)} batches, {middle:.0f} ms late (p99 {high:.0f}, at most {most:.0f})")
        for process in roles.values():
            os.kill(process.pid or 0, signal.SIGTERM)
        for process in roles.values():
            process.join(15)


def _child(role: str, values: dict[str, Any], secrets: tuple[str, str], instruments: Sequence[Instrument]) -> None:
    """Run one service until SIGTERM."""
    die_with_parent()
    settings = Settings.model_validate(values)
    settings = settings.model_copy(
        update={
            "nats": settings.nats.model_copy(update={"password": SecretStr(secrets[0])}),
            "vendor": settings.vendor.model_copy(update={"api_key": SecretStr(secrets[1])}),
        }
    )
    asyncio.run(_serve(role, settings, instruments))


async def _serve(role: str, settings: Settings, instruments: Sequence[Instrument]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with open_bus(settings.nats, role) as bus:
        work: Coroutine[Any, Any, None]
        if role == "collector":
            work = Collector(bus, settings, instruments).run(stop)
        else:
            work = Aggregator(bus, instruments).run(stop)
        await work


def _instrument(ticker: str, market: Any) -> Instrument:
    name = ticker.partition(":")[2]
    return Instrument(
        symbol=f"{name[:-3]}/{name[-3:]}",
        asset_class=market,
        vendor_ticker=ticker,
        calendar=market,
        history_start=date(2020, 1, 1),
    )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()

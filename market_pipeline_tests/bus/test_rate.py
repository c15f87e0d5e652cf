"""The vendor's rate holds across processes and runs, and is lost by nobody's death."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from nats.aio.client import Client
from pydantic import SecretStr

from market_pipeline.bus import rate
from market_pipeline.bus.connection import connect
from market_pipeline.bus.rate import CELL_BUCKET, LOG_BUCKET, KvRateGate, fingerprint
from market_pipeline.errors import BusUnreachable
from market_pipeline.settings import VendorSettings
from market_pipeline.simulator import server as simulator_server
from market_pipeline.simulator.server import SimulatorThread
from market_pipeline_tests.servers import NatsProcess, die_with_parent


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorThread]:
    with simulator_server.start_in_thread() as running:
        httpx.get(f"{running.base_url}/v1/marketstatus/now", params={"apiKey": running.api_key}, timeout=60)  # warm
        yield running


def most_in_a_window(times: list[float], window: float) -> int:
    """Count the most times that any half-open window holds."""
    return max(sum(first <= at < first + window for at in times) for first in times)


def start_worker(server: NatsProcess, orders: list[dict[str, Any]]) -> subprocess.Popen[str]:
    nats = {"url": server.url, "user": server.user, "password": server.password}
    worker = subprocess.Popen(
        [sys.executable, "-m", "market_pipeline_tests.bus.rate_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    assert worker.stdin is not None
    worker.stdin.write(json.dumps({"nats": nats, "orders": orders}))
    worker.stdin.close()
    worker.stdin = None
    return worker


def test_three_processes_share_one_plan(server: NatsProcess, simulator: SimulatorThread) -> None:
    """Two plans, one of each kind of rule, each with a key of its own: first the small one, then the large one."""
    plans = [(5, 1.5, 4, 4), (100, 1.5, 64, 8)]
    keys = [simulator.add_key() for _ in plans]
    orders = [
        {
            "vendor": {
                "base_url": simulator.base_url,
                "api_key": key,
                "requests_per_minute": requests,
                "rate_window_s": window,
            },
            "requests": each,
            "at_once": at_once,
        }
        for (requests, window, each, at_once), (_, key) in zip(plans, keys, strict=True)
    ]
    workers = [start_worker(server, orders) for _ in range(3)]
    done = [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]
    assert done == [[{"requests": each, "retries": {}} for _, _, each, _ in plans]] * 3
    for (requests, window, each, _), (name, _) in zip(plans, keys, strict=True):
        times = sorted(entry.at - entry.elapsed_ms / 1000 for entry in simulator.requests(key=name))
        assert len(times) == 3 * each
        assert most_in_a_window(times, window) <= requests


async def test_a_request_that_was_answered_late_counts_from_then_on(nc: Client) -> None:
    gate = KvRateGate(nc, "late", 1, 0.5)
    await gate.acquire()
    await asyncio.sleep(0.6)
    await gate.note_delay(0.6)
    assert await KvRateGate(nc, "late", 1, 0.5).acquire() >= 0.6


async def test_a_later_run_remembers_the_earlier_one(nc: Client) -> None:
    first = KvRateGate(nc, "later-run", 3, 1.0)
    started = time.monotonic()
    for _ in range(3):
        await first.acquire()
    second = KvRateGate(nc, "later-run", 3, 1.0)
    await second.acquire()
    assert 0.9 < time.monotonic() - started < 20


async def test_other_keys_have_their_own_rate(nc: Client) -> None:
    for name in ("key-one", "key-two", "key-three"):
        assert await KvRateGate(nc, name, 1, 30.0).acquire() < 20


async def test_callers_of_one_gate_are_served_in_order(nc: Client) -> None:
    gate = KvRateGate(nc, "order", 2, 0.2)
    served: list[int] = []

    async def ask(number: int) -> None:
        await gate.acquire()
        served.append(number)

    await asyncio.gather(*(ask(number) for number in range(6)))
    assert served == list(range(6))


async def test_a_caller_that_gives_up_takes_nothing(nc: Client) -> None:
    gate = KvRateGate(nc, "gives-up", 1, 1.0)
    await gate.acquire()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gate.acquire(), 0.05)
    assert await gate.acquire() <= 4.0


@pytest.mark.parametrize(("requests", "bucket"), [(5, LOG_BUCKET), (6000, CELL_BUCKET)])
async def test_a_restart_of_the_server_is_waited_out(own_server: NatsProcess, requests: int, bucket: str) -> None:
    client = await connect(own_server.settings, "test")
    gate = KvRateGate(client, "restart", requests, 60.0)
    try:
        for _ in range(3):
            await gate.acquire()
        own_server.restart()
        await gate.acquire()
        state = json.loads((await (await client.jetstream().key_value(bucket)).get("rate.restart")).value or b"")
        assert len(state) == (4 if requests == 5 else 1), "the grants of a small plan outlive the server"
    finally:
        await client.close()


async def test_without_nats_the_caller_is_told(own_server: NatsProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "PATIENCE_S", 0.3)
    monkeypatch.setattr(rate, "CALL_TIMEOUT_S", 0.3)
    client = await connect(own_server.settings, "test")
    gate = KvRateGate(client, "gone", 5, 60.0)
    try:
        await gate.acquire()
        own_server.kill()
        started = time.monotonic()
        with pytest.raises(BusUnreachable, match="rate"):
            await gate.acquire()
        assert time.monotonic() - started < 30
    finally:
        await client.close()


async def test_a_closed_connection_is_told_at_once(server: NatsProcess) -> None:
    client = await connect(server.settings, "test")
    gate = KvRateGate(client, "closed", 5, 60.0)
    await client.close()
    with pytest.raises(BusUnreachable):
        await asyncio.wait_for(gate.acquire(), 20)


async def test_the_key_is_not_stored(nc: Client) -> None:
    vendor = VendorSettings(api_key=SecretStr("very-secret"), plan="paid")
    await KvRateGate.of(nc, vendor).acquire()
    keys = await (await nc.jetstream().key_value(CELL_BUCKET)).keys()
    assert f"rate.{fingerprint('very-secret', vendor.base_url)}" in keys
    assert not [key for key in keys if "secret" in key]
    assert fingerprint("very-secret", vendor.base_url) != fingerprint("very-secret", "https://other.example")

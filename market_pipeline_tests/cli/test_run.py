"""What `market-pipeline services` shows, and its exit code."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from market_pipeline.breaker import Breakers
from market_pipeline.bus.registry import ServiceRegistry, ServiceReport
from market_pipeline.bus.session import open_bus
from market_pipeline.cli import build_app
from market_pipeline.cli.run import services_table
from market_pipeline.errors import StoreUnreachable
from market_pipeline.settings import BreakerSettings
from market_pipeline_tests.servers import NatsProcess


def test_an_open_breaker_is_shown_and_a_closed_one_is_not() -> None:
    breakers = Breakers(BreakerSettings(failures=1))
    breakers.of("insert_history")
    live = breakers.of("insert_live")
    try:
        with live.attempt():
            raise StoreUnreachable("ClickHouse at 127.0.0.1:8123 does not answer")
    except StoreUnreachable:
        pass
    report = ServiceReport("bridge", "host-1", "waiting", 0.0, tuple(breakers.problems()), breakers.facts(), 0, "")
    console = Console(width=200, record=True)
    console.print(services_table([report]))
    shown = " ".join(console.export_text().split())
    assert "breaker_insert_live open" in shown
    assert "insert_live is away (ClickHouse at 127.0.0.1:8123 does not answer)" in shown
    assert "insert_history" not in shown


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsProcess]:
    with NatsProcess() as server:
        yield server


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("bridge --here", 0, ""),
        ("ticks --here", 1, ""),  # unhealthy, although another host's is well
        ("collector --here", 1, "collector does not run on this host"),
        ("collector", 0, ""),
        ("bridge collector", 0, ""),
        ("bridge repair", 1, "repair does not run: market-pipeline run repair"),
        ("--here", 1, ""),  # ticks again
    ],
)
def test_a_named_service_must_run_and_be_healthy(
    nats: NatsProcess, arguments: str, code: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, now = f"{socket.gethostname()}-7", time.time()
    reports = [
        ServiceReport("bridge", here, "running", now),
        ServiceReport("ticks", here, "waiting", now, ("PostgreSQL does not answer",)),
        ServiceReport("ticks", "else-where-7", "running", now),
        ServiceReport("collector", "else-where-8", "standby", now),
    ]

    async def say() -> None:  # again for every case: a report ends after 15 s
        async with open_bus(nats.settings, "test") as bus:
            await ServiceRegistry(bus).say(reports)

    asyncio.run(say())
    monkeypatch.setenv("MARKET_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("MARKET_PIPELINE_NATS__URL", nats.url)
    monkeypatch.setenv("MARKET_PIPELINE_NATS__USER", nats.user)
    monkeypatch.setenv("MARKET_PIPELINE_NATS__PASSWORD", nats.password)
    result = CliRunner().invoke(build_app(), ["services", *arguments.split()])
    assert result.exit_code == code, result.output
    assert said in result.stderr

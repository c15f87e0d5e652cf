"""Servers shared by the end-to-end tests: one ClickHouse and one vendor a session, NATS and a database a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from market_pipeline.local.clickhouse import process
from market_pipeline.local.clickhouse.process import ServerProcess
from market_pipeline.simulator import server as simulator
from market_pipeline.simulator.server import SimulatorProcess
from market_pipeline_tests.integration.world import World, make_settings
from market_pipeline_tests.servers import NatsProcess
from market_pipeline_tests.stores.ticks.conftest import make_database, postgres_stack  # noqa: F401


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with process.start(tmp_path_factory.mktemp("clickhouse")) as server:
        yield server


@pytest.fixture(scope="session")
def vendor_process() -> Iterator[SimulatorProcess]:
    with simulator.start() as running:
        yield running


@pytest.fixture
def vendor(vendor_process: SimulatorProcess) -> Iterator[SimulatorProcess]:
    vendor_process.reset()
    vendor_process.set_plan("unlimited")
    yield vendor_process
    vendor_process.reset()


@pytest.fixture
def nats() -> Iterator[NatsProcess]:
    with NatsProcess() as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, nats: NatsProcess, clickhouse: ServerProcess, vendor: SimulatorProcess) -> World:
    return World(make_settings(tmp_path / "home", nats, clickhouse, vendor), nats, clickhouse, vendor)

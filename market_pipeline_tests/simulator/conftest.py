"""One simulator in a thread serves the whole folder; each test finds it as if it had just started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

import httpx
import pytest

from market_pipeline.simulator.server import SimulatorThread, start_in_thread


@pytest.fixture(scope="session")
def running_simulator() -> Iterator[SimulatorThread]:
    with start_in_thread() as simulator:
        yield simulator


@pytest.fixture
def simulator(running_simulator: SimulatorThread) -> SimulatorThread:
    running_simulator.control.reset()
    running_simulator.control.set_plan("unlimited")
    return running_simulator


@pytest.fixture
def http(simulator: SimulatorThread) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {simulator.api_key}"}
    with httpx.Client(base_url=simulator.base_url, headers=headers, trust_env=False, timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def utc() -> Callable[..., datetime]:
    return partial(datetime, tzinfo=UTC)

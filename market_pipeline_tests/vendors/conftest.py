"""What the vendor tests share: a client against a scripted vendor, with pauses of milliseconds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from market_pipeline.breaker import Breakers
from market_pipeline.settings import VendorSettings
from market_pipeline.vendors.base import MinutePage
from market_pipeline.vendors.polygon import PolygonClient
from market_pipeline_tests.vendors.scripted import KEY, Asked, Reply, ScriptedVendor

START = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Pair:
    """An instrument as the client needs it."""

    symbol: str = "EUR/USD"
    vendor_ticker: str = "C:EURUSD"


def at(minute: float) -> datetime:
    """Return a time counted in minutes from 2024-01-01 00:00 UTC."""
    return START + timedelta(minutes=minute)


class CountingGate:
    """A gate that is always open, and counts."""

    def __init__(self) -> None:
        self.passed = 0
        self.delays: list[float] = []

    async def acquire(self) -> float:
        self.passed += 1
        return 0.0

    async def note_delay(self, seconds: float) -> None:
        self.delays.append(seconds)


@dataclass
class Bench:
    """A client, its vendor and its gate."""

    client: PolygonClient
    vendor: ScriptedVendor
    gate: CountingGate

    async def pages(self, minutes: int = 10, **options: Any) -> list[MinutePage]:
        """Load the first `minutes` minutes."""
        return [page async for page in self.client.minutes(Pair(), START, at(minutes), **options)]


@pytest.fixture
def bench() -> Callable[..., AbstractAsyncContextManager[Bench]]:
    @asynccontextmanager
    async def open_bench(
        answer: Callable[[Asked], Reply], breakers: Breakers | None = None, **settings: Any
    ) -> AsyncIterator[Bench]:
        async with ScriptedVendor(answer) as vendor:
            quick = {"backoff_initial_s": 0.002, "backoff_max_s": 0.01, "max_attempts": 3, "timeout_s": 2.0}
            vendor_settings = VendorSettings(
                **{"base_url": vendor.base_url, "api_key": SecretStr(KEY), **quick, **settings}
            )
            gate = CountingGate()
            async with PolygonClient(vendor_settings, gate, breakers=breakers) as client:
                yield Bench(client, vendor, gate)

    return open_bench

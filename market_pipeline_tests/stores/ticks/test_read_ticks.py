from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from market_pipeline.errors import BadRange, UnknownSymbol
from market_pipeline.market.ticks import TICK_SCHEMA
from market_pipeline.read import ticks
from market_pipeline.settings import PostgresSettings, Settings
from market_pipeline.stores.ticks import TickStore
from market_pipeline_tests.stores.ticks.frames import START, batch, quotes


async def test_ticks_as_a_user_reads_them(database: PostgresSettings, tmp_path: Path) -> None:
    given = quotes("EURUSD", (0, 1.0, 1.1), (0, 1.0, 1.1), (7, 1.2, 1.3), (60_000, 9.0, 9.1))
    async with TickStore(database) as store:
        await store.store([batch(given)])
    settings = Settings(home=tmp_path, postgres=database)
    found = ticks("c:eurusd", f"{START:%Y-%m-%dT%H:%M}", START + timedelta(minutes=1), settings=settings)
    assert found.schema == TICK_SCHEMA
    assert found.equals(given.head(3).with_columns(symbol=pl.lit("EUR/USD")))
    assert ticks("EURUSD", "2023-01-01", datetime(2023, 1, 2), settings=settings).schema == TICK_SCHEMA
    with pytest.raises(BadRange, match="before its start"):
        ticks("EURUSD", START, START, settings=settings)
    with pytest.raises(UnknownSymbol):
        ticks("NOSUCH", START, START + timedelta(1), settings=settings)


def test_readers_of_bars_load_no_driver_of_postgresql() -> None:
    code = "import sys, market_pipeline.read; sys.exit('psycopg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The commands and the Python that the README and the demo's last words give: they show bars of what the demo loads."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from itertools import product
from pathlib import Path
from time import sleep

import polars as pl
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from market_pipeline import read
from market_pipeline.cli import build_app
from market_pipeline.local.demo import next_steps, parts
from market_pipeline.settings import ClickHouseSettings
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import Client
from market_pipeline_tests.stores.frames import bar

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


@pytest.fixture(autouse=True, scope="module")
def _what_the_demo_loads(client: Client) -> None:
    """Stand for the demo's parts: a few bars of every day of its symbols."""
    derived = {"source": "derived", "origin": "vendor_historical"}
    frames = []
    for part in parts(datetime.now(UTC)):
        days = [part.first + timedelta(days=count) for count in range((part.last - part.first).days + 1)]
        for symbol, day in product({part.first_symbol, "BTCUSD"}, days):
            midnight = datetime.combine(day, time(), UTC)
            frames.append(bar(midnight, symbol=symbol, timeframe="5m", **derived))
            frames += [bar(midnight + timedelta(hours=h), symbol=symbol, timeframe="1h", **derived) for h in (10, 12)]
    BarStore(client).insert_frame(pl.concat(frames))
    sleep(1.1)  # the commands name moments to the second


@pytest.fixture(autouse=True)
def _settings(clickhouse: ClickHouseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in clickhouse.model_dump().items():
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        monkeypatch.setenv(f"MARKET_PIPELINE_CLICKHOUSE__{name.upper()}", text)
    monkeypatch.setenv("MARKET_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "240")
    yield
    read._forget(clickhouse)


def shows_bars(command: str) -> None:
    program, *arguments = shlex.split(command, comments=True)
    assert program == "market-pipeline"
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    result = CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    assert result.exit_code == 0, (command, result.output)
    assert re.search(r"20\d\d-\d\d-\d\d.10:00", result.output) or "--csv" in arguments or "trace" in arguments, command
    assert len(result.output.splitlines()) > 4, (command, result.output)


def test_the_demos_last_words(tmp_path: Path) -> None:
    commands = next_steps(tmp_path, datetime.now(UTC), live=False)
    assert commands[-1] == "market-pipeline down"
    for command in commands[:-1]:
        shows_bars(command)
    assert "market-pipeline services" in next_steps(tmp_path, datetime.now(UTC), live=True)
    elsewhere = next_steps(tmp_path / "an other", datetime.now(UTC), live=True)
    assert all(shlex.split(command)[-2:] == ["--home", str(tmp_path / "an other")] for command in elsewhere)


def test_the_readmes_commands() -> None:
    moment = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
    lines = [line for line in README.splitlines() if re.match("market-pipeline (bars|trace) ", line)]
    assert any("--as-of" in line for line in lines)
    for line in lines:
        shows_bars(line.replace("$(date -u +%FT%T)", moment))


def test_the_readmes_python() -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.S)
    found: dict[str, object] = {}
    exec(re.sub("(?m)^quotes = .*$", "", code), found)  # ticks lie in PostgreSQL
    assert found["frame"].height  # type: ignore[attr-defined]
    assert found["then"].equals(found["frame"])  # type: ignore[attr-defined]

"""Loading the code location as Dagster does: in a process of its own, without any server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

LOAD = """
import time, sys
started = time.perf_counter()
import market_pipeline.definitions as module
repository = module.defs.get_repository_def()
assert len(repository.asset_graph.executable_asset_keys) == 9
print(time.perf_counter() - started)
heavy = {"nats", "clickhouse_connect", "httpx", "pandas"} & set(sys.modules)
print(sorted(heavy))
"""


def load(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MARKET_PIPELINE_")}
    return subprocess.run(
        [sys.executable, "-c", LOAD],
        env={**inherited, "MARKET_PIPELINE_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_definitions_load_without_servers_and_without_their_clients(tmp_path: Path) -> None:
    before = time.process_time()
    result = load(tmp_path, MARKET_PIPELINE_NATS__URL="nats://127.0.0.1:1", MARKET_PIPELINE_CLICKHOUSE__PORT="1")
    assert result.returncode == 0, result.stderr
    seconds, clients = result.stdout.strip().splitlines()
    assert clients == "[]"
    assert float(seconds) < 30  # about 3 s on a free machine; the bound only has to tell seconds from a hang
    assert time.process_time() - before < 5
    assert "Warning" not in result.stderr


def test_a_wrong_instruments_file_is_one_clear_sentence(tmp_path: Path) -> None:
    file = tmp_path / "instruments.yaml"
    file.write_text(
        "instruments:\n"
        "  - {symbol: EUR/USD, asset_class: forex, vendor_ticker: EURUSD, calendar: forex, history_start: 2019-01-01}\n"
    )
    result = load(tmp_path, MARKET_PIPELINE_INSTRUMENTS_FILE=str(file))
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("market_pipeline.errors.InstrumentsFileError: ")
    assert str(file) in last
    assert "EUR/USD" in last
    assert "vendor_ticker" in last


def test_a_missing_instruments_file_is_named(tmp_path: Path) -> None:
    result = load(tmp_path, MARKET_PIPELINE_INSTRUMENTS_FILE=str(tmp_path / "none.yaml"))
    assert "none.yaml does not exist" in result.stderr.strip().splitlines()[-1]

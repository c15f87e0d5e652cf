"""The command line as a whole: what it says of an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", [("bars", "EUR/USD", "1h"), ("dead-letters", "list")])
def test_a_server_that_is_away_names_the_command_that_starts_it(command: tuple[str, ...], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MARKET_PIPELINE_")}
    environment |= {
        "MARKET_PIPELINE_HOME": str(tmp_path),
        "MARKET_PIPELINE_CLICKHOUSE__PORT": "1",
        "MARKET_PIPELINE_NATS__URL": "nats://127.0.0.1:1",
        "MARKET_PIPELINE_NATS__CONNECT_TIMEOUT": "1",
    }
    result = subprocess.run(
        [sys.executable, "-m", "market_pipeline.cli", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert "does not answer" in result.stderr
    assert result.stderr.rstrip().endswith("market-pipeline status, market-pipeline up")

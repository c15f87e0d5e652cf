"""`market-pipeline run` of a single service: a process that comes to running, says so, works, and ends when told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Any

from market_pipeline.settings import ENV_PREFIX
from market_pipeline_tests.integration.world import World, write_home
from market_pipeline_tests.servers import die_with_parent

NAMES = ("collector", "aggregator", "bridge")
INSTRUMENTS = """
instruments:
  - {symbol: BTC/USD, asset_class: crypto, vendor_ticker: "X:BTCUSD", calendar: crypto, history_start: 2024-01-01}
"""
STARTS_S = 150.0
ENDS_S = 30.0


def test_each_service_as_a_process_of_its_own_runs_works_and_ends_when_told(world: World, tmp_path: Path) -> None:
    file = tmp_path / "instruments.yaml"
    file.write_text(INSTRUMENTS)
    world.settings = world.settings.model_copy(update={"instruments_file": file})
    write_home(world.settings)
    program = [str(Path(sysconfig.get_path("scripts")) / "market-pipeline")]
    home = ["--home", str(world.settings.home)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}

    def said() -> tuple[int, dict[str, dict[str, Any]]]:
        asked = subprocess.run(
            [*program, "services", *NAMES, "--here", "--json", *home], env=environment, capture_output=True, timeout=60
        )
        return asked.returncode, {each["name"]: each for each in json.loads(asked.stdout or "[]")}

    def logs() -> str:
        return "\n".join(f"{name}: {(tmp_path / name).read_text()[-2000:]}" for name in NAMES)

    def work(reports: dict[str, dict[str, Any]]) -> bool:
        return (
            [reports[name]["state"] if name in reports else "" for name in NAMES] == ["running"] * len(NAMES)
            and reports["collector"]["facts"]["ticks"] > 0
            and reports["aggregator"]["facts"]["bars"] > 0
            and reports["bridge"]["facts"]["live_rows"] > 0
        )

    assert said() == (1, {})
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in NAMES:
            with (tmp_path / name).open("wb") as log:
                running[name] = subprocess.Popen(
                    [*program, "run", name, *home],
                    env=environment,
                    cwd=tmp_path,
                    stdout=log,
                    stderr=log,
                    preexec_fn=die_with_parent,
                )
        until = time.monotonic() + STARTS_S
        while True:
            code, reports = said()
            if code == 0 and work(reports):
                break
            assert all(process.poll() is None for process in running.values()), logs()
            assert time.monotonic() < until, f"{reports}\n{logs()}"
            time.sleep(0.5)  # asking costs as much as starting
        instances = {reports[name]["instance"] for name in NAMES}
        assert len(instances) == len(NAMES), "each in a process of its own"
        for name in NAMES:
            running[name].send_signal(signal.SIGTERM)
            assert running[name].wait(ENDS_S) == 0, logs()
        code, reports = said()
        assert code == 1
        assert "running" not in {each["state"] for each in reports.values()}
        assert world.settings.vendor.api_key.get_secret_value() not in logs()
    finally:
        for process in running.values():
            process.kill()
            process.wait()

"""The simulator as a process: ready, secret, persistent, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from market_pipeline.errors import LocalStackError, SettingsError
from market_pipeline.simulator.secret_files import read_secret
from market_pipeline.simulator.server import start

PATH = "/v2/aggs/ticker/X:ETHUSD/range/1/minute/2023-03-01/2023-03-01"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone_within(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


def test_overlays_and_key_survive_a_restart(tmp_path: Path) -> None:
    minute = datetime(2023, 3, 1, 4, tzinfo=UTC)
    state, directory = tmp_path / "state.json", tmp_path / "run"
    with start(state=state, directory=directory, seed=3, plan="free") as first:
        first.restate("X:ETHUSD", minute, close=1.5, low=1.0)
        key = first.api_key
        command = Path(f"/proc/{first.pid}/cmdline").read_bytes()
        assert key.encode() not in command
        for name in ("api-key", "control-token"):
            assert (directory / name).stat().st_mode & 0o777 == 0o600
            assert (directory / name).read_text().strip().encode() not in command
        answers = [httpx.get(first.base_url + PATH, params={"apiKey": key}, trust_env=False) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        pid = first.pid
    assert not alive(pid)
    first.stop()
    with start(state=state, directory=directory, seed=3) as second:
        assert second.api_key == key
        page = httpx.get(second.base_url + PATH, params={"apiKey": key}, trust_env=False).json()
        assert page["results"] == answers[0].json()["results"]
        assert page["results"][240]["c"] == 1.5
        assert "127.0.0.1" in second.base_url


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = """
        import json, pathlib, sys, time
        from market_pipeline.simulator.server import start
        simulator = start(directory=pathlib.Path(sys.argv[1]))
        print(json.dumps(simulator.pid), flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        pid = int(json.loads(parent.stdout.readline()))
        assert alive(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert gone_within(pid, 10)


def test_a_port_that_is_taken_is_an_error_that_says_so(tmp_path: Path) -> None:
    with start() as first:
        port = int(first.base_url.rpartition(":")[2])
        with pytest.raises(LocalStackError, match="in use"):
            start(port=port, directory=tmp_path)


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret")
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600") as refused:
        read_secret(file)
    assert "secret" not in str(refused.value).replace("secret_", "")
    file.chmod(0o600)
    assert read_secret(file) == "secret"
    file.write_text("\n")
    with pytest.raises(SettingsError, match="empty"):
        read_secret(file)

"""What a live service's container runs, without the container: its command, its health check, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

from market_pipeline.settings import ENV_PREFIX
from market_pipeline_tests.docker.files import environment, live_services
from market_pipeline_tests.servers import NatsProcess, die_with_parent


def test_a_container_proves_its_health_and_ends_when_told(tmp_path: Path) -> None:
    spec = live_services()["throttle"]  # of all services the one that needs nothing but NATS
    scripts = Path(sysconfig.get_path("scripts"))
    command = [str(scripts / spec["command"][0]), *spec["command"][1:]]
    check = [str(scripts / spec["healthcheck"]["test"][1]), *spec["healthcheck"]["test"][2:]]
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    with NatsProcess() as nats:
        given = {
            **inherited,
            **environment("throttle"),
            f"{ENV_PREFIX}HOME": str(tmp_path),
            f"{ENV_PREFIX}NATS__URL": nats.url,
            f"{ENV_PREFIX}NATS__USER": nats.user,
            f"{ENV_PREFIX}NATS__PASSWORD": nats.password,
        }

        def healthy() -> bool:
            return subprocess.run(check, env=given, cwd=tmp_path, capture_output=True, timeout=60).returncode == 0

        assert not healthy()
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                command, env=given, cwd=tmp_path, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        try:
            until = time.monotonic() + 60
            while not healthy():
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < until, (tmp_path / "log").read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(int(spec["stop_grace_period"].removesuffix("s"))) == 0
        finally:
            process.kill()
            process.wait()
        assert not healthy()
        assert nats.password not in (tmp_path / "log").read_text()

"""The vendor simulator: takes the vendor's place as long as there is no real key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import httpx

from market_pipeline.local import passwords
from market_pipeline.local.components.base import Component, ProbeFailed
from market_pipeline.local.ports import LOOPBACK
from market_pipeline.local.processes import Launch, plain_environment

PROBE_TIMEOUT_S = 3.0


class Simulator(Component):
    """Run the simulator with a generated key; its own default is a plan without a limit worth waiting for."""

    name: ClassVar[str] = "simulator"
    packages: ClassVar[tuple[str, ...]] = ("starlette", "uvicorn")
    port_names: ClassVar[tuple[str, ...]] = ("simulator",)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def ready_file(self) -> Path:
        return self.home.run / "simulator.ready"

    def prepare(self) -> None:
        self.ready_file.unlink(missing_ok=True)

    def launch(self) -> Launch:
        secrets = self.home.secrets
        arguments = ["--port", self.port, "--ready-file", self.ready_file]
        arguments += ["--api-key-file", secrets / passwords.SIMULATOR_KEY]
        arguments += ["--control-token-file", secrets / passwords.SIMULATOR_CONTROL]
        arguments += ["--state", self.home.data("simulator") / "state.json"]
        return Launch(
            argv=[sys.executable, "-m", "market_pipeline.simulator", *map(str, arguments)],
            cwd=self.context.project_dir or self.home.data("simulator"),
            env=plain_environment(),
        )

    def probe(self, *, deep: bool) -> None:
        """Ask for the market status with the key."""
        key = self.context.passwords[passwords.SIMULATOR_KEY]
        answer = httpx.get(
            f"{self.address}/v1/marketstatus/now",
            headers={"Authorization": f"Bearer {key}"},
            timeout=PROBE_TIMEOUT_S,
            trust_env=False,
        )
        if answer.status_code != httpx.codes.OK:
            raise ProbeFailed(f"the simulator answers {answer.status_code} to a request for the market status")

"""Start and stop simulators: as a process of their own, or as a thread of this one."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import market_pipeline
from market_pipeline.errors import LocalStackError
from market_pipeline.simulator.client import ControlClient
from market_pipeline.simulator.plans import PLANS
from market_pipeline.simulator.secret_files import read_secret
from market_pipeline.simulator.serving import HOST, SimulatorServer, bind
from market_pipeline.simulator.vendor import Vendor

_START_SECONDS = 60.0
_STOP_SECONDS = 5.0


class Simulator:
    """Be a running simulator: `base_url`, `api_key`, `seed`, and `control` to drive it. A context manager.

    The methods of `ControlClient` are also found here: `simulator.add_fault(...)`, `.restate(...)`, `.requests()`.
    """

    base_url: str
    api_key: str
    seed: int
    control: ControlClient

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "control":
            raise AttributeError(name)
        return getattr(self.control, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the simulator; a second call does nothing."""
        raise NotImplementedError


class SimulatorProcess(Simulator):
    """A simulator in a process of its own; `pid` is its id. It ends with this process, however that ends."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, seed: int, *, ours: bool) -> None:
        self._process = process
        self._directory = directory
        self._ours = ours
        self.seed = seed
        self.pid = process.pid
        try:
            self.base_url = self._await_ready()
        except BaseException:
            self.stop()
            raise
        self.api_key = read_secret(directory / "api-key")
        self.control = ControlClient(self.base_url, read_secret(directory / "control-token"))

    def stop(self) -> None:
        """End the process: asked first, then killed."""
        if "control" in self.__dict__:
            self.control.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._ours:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _await_ready(self) -> str:
        ready, until = self._directory / "ready.json", time.monotonic() + _START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            if ready.exists():
                return str(json.loads(ready.read_text())["base_url"])
            time.sleep(0.02)
        said = (self._directory / "log").read_text(errors="replace")[-2000:]
        how = "does not answer" if self._process.poll() is None else f"ended with code {self._process.returncode}"
        raise LocalStackError(f"the vendor simulator {how}; it said:\n{said}")


class SimulatorThread(Simulator):
    """A simulator in a thread of this process, for unit tests; `vendor` is its inside."""

    def __init__(self, vendor: Vendor, api_key: str) -> None:
        token, ready = secrets.token_hex(16), threading.Event()
        listener = bind()
        self.vendor = vendor
        self.seed = vendor.state.seed
        self.api_key = api_key
        self.base_url = f"http://{HOST}:{listener.getsockname()[1]}"
        self._server = SimulatorServer(vendor, token, ready.set)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="vendor simulator", daemon=True
        )
        self._thread.start()
        if not ready.wait(_START_SECONDS):
            raise LocalStackError("the vendor simulator does not answer")
        self.control = ControlClient(self.base_url, token)

    def stop(self) -> None:
        """End the server and wait for its thread."""
        self.control.close()
        self._server.should_exit = True
        self._thread.join(_STOP_SECONDS)


def start(
    *, plan: str = "unlimited", seed: int = 0, state: Path | None = None, directory: Path | None = None, port: int = 0
) -> SimulatorProcess:
    """Start a simulator as a process on a free loopback port (or the given one) and wait until it answers.

    `plan` is "free" (5 requests a minute) or "unlimited". Overlays outlive it in the file `state`. Key, token and log
    are in `directory` (a temporary one by default; a key that is already there is used again). Raises LocalStackError.
    """
    ours = directory is None
    directory = directory or Path(tempfile.mkdtemp(prefix="vendor-simulator-"))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (directory / "ready.json").unlink()
    command = [sys.executable, "-m", "market_pipeline.simulator", "--die-with-parent"]
    command += ["--port", str(port), "--plan", plan, "--seed", str(seed)]
    for option, name in (
        ("--api-key-file", "api-key"),
        ("--control-token-file", "control-token"),
        ("--ready-file", "ready.json"),
    ):
        command += [option, str(directory / name)]
    if state is not None:
        command += ["--state", str(state)]
    # The child must find this very package, whatever its working directory and whether it is installed or not.
    paths = [str(Path(market_pipeline.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    return SimulatorProcess(process, directory, seed, ours=ours)


def start_in_thread(*, plan: str = "unlimited", seed: int = 0, state: Path | None = None) -> SimulatorThread:
    """Start a simulator in a thread of this process on a free loopback port and wait until it answers."""
    api_key = secrets.token_hex(16)
    return SimulatorThread(Vendor.make(api_key, plan=PLANS[plan], seed=seed, state_file=state), api_key)

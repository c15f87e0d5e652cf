"""The one process that owns a stack.

    python -m market_pipeline.local.supervisor '{"home": "/path", "components": ["nats", "postgres"], ...}'

`market-pipeline up` starts it; SIGTERM stops the stack in reverse order.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from market_pipeline.errors import LocalStackError, MarketPipelineError
from market_pipeline.local import disk, environment, packages, ports
from market_pipeline.local.components import COMPONENTS, DEFAULT_MODULE, Context
from market_pipeline.local.keeper import Keeper
from market_pipeline.local.layout import Home
from market_pipeline.local.locks import MARK, Lock
from market_pipeline.local.orphans import end_orphans
from market_pipeline.local.passwords import ensure_passwords
from market_pipeline.local.state import StackState, write_state

_STATE_EVERY_S = 5.0

_log = structlog.get_logger(__name__)


class Options(msgspec.Struct, frozen=True):
    """What a supervisor is told; `report_fd` is the pipe on which it says once whether it could begin."""

    home: str
    components: tuple[str, ...]
    module: str = DEFAULT_MODULE
    project_dir: str | None = None
    min_free_mb: int = disk.DEFAULT_MIN_FREE_MB
    repick_ports: bool = False
    report_fd: int | None = None


class Supervisor:
    """Start, watch and stop the components of one stack."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.home = Home.at(options.home)
        self.lock = Lock(self.home.lock("supervisor"))
        self.state = StackState(pid=os.getpid(), module=options.module, project_dir=options.project_dir or "")
        self._keepers: dict[str, Keeper] = {}
        self._stop = asyncio.Event()

    def begin(self) -> None:
        """Check and prepare everything that can be refused before a server is started.

        Raises:
            LocalStackError: with the sentence for the user.
        """
        options, home = self.options, self.home
        kinds = [COMPONENTS[name] for name in options.components]
        packages.require(package for kind in kinds for package in kind.packages)
        home.create()
        disk.require_free(home.root, options.min_free_mb)
        if not self.lock.take():
            raise LocalStackError(f"the stack in {home.root} is being started or run by another process")
        end_orphans(home)
        chosen = ports.ensure_ports(home, repick_taken=options.repick_ports)
        ports.check_free(home, chosen, [name for kind in kinds for name in kind.port_names])
        secrets = ensure_passwords(home)
        settings = environment.write_settings(home, chosen, secrets)
        project = Path(options.project_dir) if options.project_dir else None
        # Also without Dagster of our own: plain `dagster dev` must find PostgreSQL in DAGSTER_HOME.
        environment.install_dagster_yaml(home, project)
        if project is not None:
            environment.write_dotenv(project, home, environment.dagster_variables(home, chosen, secrets))
        context = Context(home, chosen, secrets, settings, options.module, project)
        for kind in kinds:
            keeper = Keeper(kind(context), self._publish)
            if not keeper.lock.take():
                raise LocalStackError(
                    f"{keeper.lock.path} is held by another process: `market-pipeline down`, then again"
                )
            self._keepers[kind.name] = keeper
        self.state.components = [keeper.state for keeper in self._keepers.values()]
        self._publish()

    async def run(self) -> None:
        """Run the components until SIGTERM or SIGINT, then stop them in reverse order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        tasks = [
            asyncio.create_task(keeper.run([self._keepers[name] for name in keeper.component.after]), name=name)
            for name, keeper in self._keepers.items()
        ]
        while not self._stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _STATE_EVERY_S)
            self._publish()
        self.state.phase = "stopping"
        self._publish()
        await self._stop_all()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.state.phase = "stopped"
        self._publish()
        self.lock.release()

    async def _stop_all(self) -> None:
        """Stop what nothing needs any more, level by level, each level at once."""
        left = dict(self._keepers)
        while left:
            needed = {name for keeper in left.values() for name in keeper.component.after}
            # The servers that hold data go last: Dagster's runs write to all of them until their end.
            holds_runs = any(keeper.component.launches_runs or keeper.component.after for keeper in left.values())
            level = [
                name
                for name, keeper in left.items()
                if name not in needed and (keeper.component.after or not holds_runs)
            ]
            await asyncio.gather(*(left.pop(name).stop() for name in level))

    def _publish(self) -> None:
        if self.state.phase in ("starting", "running"):
            self.state.phase = "running" if self.state.settled else "starting"
        try:
            write_state(self.home, self.state)
        except OSError as error:  # a full disk must not end the supervisor
            _log.error("the state cannot be written", error=error.strerror)


def configure_logging() -> None:
    """Write one line an event to the standard output, without colours: it goes to logs/supervisor.log."""
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.add_log_level,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )


def run_here(options: Options) -> int:
    """Run a supervisor in this process until SIGTERM or Ctrl-C; 1 when it could not begin."""
    os.environ.pop(MARK, None)  # a supervisor that a run of another stack started is no part of that stack
    configure_logging()
    return asyncio.run(_main(options))


async def _main(options: Options) -> int:
    supervisor = Supervisor(options)
    try:
        supervisor.begin()
    except (MarketPipelineError, OSError) as error:
        full = isinstance(error, OSError) and disk.is_full(error)
        message = f"the disk of {options.home} is full: free some space" if full else str(error)
        _report(options, message)
        _log.error("cannot start", error=message)
        return 1
    _report(options, "")
    await supervisor.run()
    return 0


def _report(options: Options, error: str) -> None:
    if options.report_fd is not None:
        with suppress(BrokenPipeError), os.fdopen(options.report_fd, "w") as pipe:
            pipe.write(msgspec.json.encode({"error": error}).decode())


if __name__ == "__main__":
    sys.exit(run_here(msgspec.json.decode(sys.argv[1], type=Options)))

"""`run`: live services in the foreground, without Dagster; `services`: who runs now, and how it is."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from market_pipeline.cli.logs import log_to_stderr
from market_pipeline.cli.stack import DEFAULT_HOME, HomeOption
from market_pipeline.tasks import pause

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_pipeline.bus.registry import ServiceReport
    from market_pipeline.live.supervisor import LiveSupervisor
    from market_pipeline.settings import Settings

_HIDDEN = frozenset({"run_id", "collector_id"})
SAY_EVERY_S = 10.0
ALL = "all"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(run)
    app.command()(services)


def run(
    names: Annotated[
        list[str],
        typer.Argument(help="collector, aggregator, ticks, bridge, repair, throttle (several at once), or all"),
    ],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Run live services in the foreground until Ctrl-C or SIGTERM.

    Several processes may run the same services: of collectors and aggregators one works and the others stand by,
    bridges share the work.
    """
    from market_pipeline.live.build import build_services
    from market_pipeline.live.supervisor import LiveSupervisor
    from market_pipeline.settings import load_settings

    settings = load_settings(_home(home))
    chosen = build_services(settings, [] if ALL in names else names)
    with log_to_stderr(logging.INFO):
        asyncio.run(_run(LiveSupervisor(settings, chosen)))


def services(
    names: Annotated[list[str] | None, typer.Argument(help="Only these services, each of which must run.")] = None,
    home: HomeOption = DEFAULT_HOME,
    here: Annotated[bool, typer.Option("--here", help="Only services of this host: a container's own.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every live service that runs now, on this machine or another; exit code 1 unless all are healthy.

    With names: unless each of them runs and is healthy. A container's check: `market-pipeline services bridge --here`.
    """
    import msgspec

    from market_pipeline.settings import load_settings

    reports = read_services(load_settings(_home(home)), host=socket.gethostname() if here else "", names=names or ())
    missing = [name for name in names or () if name not in {each.name for each in reports}]
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(reports)).decode())
    elif not reports and not missing:
        Console().print("no live service runs: turn on the sensor keep_live in the UI, or market-pipeline run all")
    elif reports:
        Console(width=None if Console().is_terminal else 140).print(services_table(reports))
    for name in missing:
        typer.echo(f"{name} does not run{' on this host' if here else ''}: market-pipeline run {name}", err=True)
    if missing or not reports or any(each.problems for each in reports):
        raise typer.Exit(1)


def read_services(settings: Settings, *, host: str = "", names: Sequence[str] = ()) -> list[ServiceReport]:
    """Return what the services that run now say of themselves: those of one host, or of these names, if given.

    Raises:
        BusUnreachable, BusAuthError: NATS cannot be asked.
    """
    from market_pipeline.bus.registry import ServiceRegistry
    from market_pipeline.bus.session import open_bus

    async def ask() -> list[ServiceReport]:
        async with open_bus(settings.nats, "services") as bus:
            return [
                each
                for each in await ServiceRegistry(bus).all()
                if (not host or each.host == host) and (not names or each.name in names)
            ]

    with log_to_stderr():
        return asyncio.run(ask())


def services_table(reports: Sequence[ServiceReport]) -> Table:
    """Return the services as a table."""
    table = Table("service", "state", "where", "restarts", "what it says", box=SIMPLE_HEAD, pad_edge=False)
    for each in reports:
        facts = ", ".join(f"{name} {_text(value)}" for name, value in telling(each.facts).items())
        style = "red" if each.problems else "green" if each.state == "running" else "yellow"
        said = "\n".join([*(f"[red]{text}[/]" for text in each.problems), facts])
        table.add_row(each.name, f"[{style}]{each.state}[/]", each.instance, str(each.restarts), said.strip())
    return table


def telling(facts: Mapping[str, int | float | str]) -> dict[str, int | float | str]:
    """Return the facts that tell a person something: no zeros, no names of processes, no breakers that are closed."""
    return {name: value for name, value in facts.items() if value not in (0, "", "closed") and name not in _HIDDEN}


async def _run(supervisor: LiveSupervisor) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    saying = asyncio.create_task(_say(supervisor, stop))
    try:
        await supervisor.run(stop)
    finally:
        stop.set()
        await saying


async def _say(supervisor: LiveSupervisor, stop: asyncio.Event) -> None:
    """Print a table of the services every few seconds: a line each where the output is no terminal."""
    console = Console()
    while not stop.is_set():
        await pause(stop, SAY_EVERY_S)
        reports = supervisor.reports()
        if console.is_terminal:
            console.print(services_table(reports))
            continue
        for each in reports:
            facts = " ".join(f"{name.replace(' ', '_')}={value}" for name, value in each.facts.items())
            said = "; ".join(each.problems)
            print(f"{each.name} {each.state} {facts} {said}".rstrip(), flush=True)


def _home(home: Path) -> Path | None:
    """Return the folder if it holds a stack; else the settings come from the environment alone, as in a container."""
    return home if home.exists() else None


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if isinstance(value, float) else str(value)

"""`up`, `down`, `status`, `doctor`: the embedded stack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from market_pipeline.cli.logs import log_to_stderr
from market_pipeline.errors import BusError, SpoolError

if TYPE_CHECKING:
    from market_pipeline.bus.overview import BusStatus
    from market_pipeline.bus.spool import FolderStatus
    from market_pipeline.local.stack import Progress, Stack
    from market_pipeline.local.state import StackState

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="MARKET_PIPELINE_HOME", help="The stack's folder.", show_default=".market_pipeline"),
]
DEFAULT_HOME = Path(".market_pipeline")
_STYLES = {"ready": "green", "unhealthy": "red", "failed": "red", "restarting": "yellow", "starting": "yellow"}
_VERDICTS = {"good": "[green]good[/]", "warning": "[yellow]warning[/]", "wrong": "[red]WRONG[/]"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(doctor)


def up(
    home: HomeOption = DEFAULT_HOME,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Start only this component and what it needs (repeatable; `dagster` is all of it)."),
    ] = None,
    dagster: Annotated[bool, typer.Option("--dagster/--no-dagster", help="Start Dagster too.")] = True,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay in the terminal; Ctrl-C stops the stack.")
    ] = False,
    project_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that gets the .env for plain `dagster dev` (default: this one, if workspace.yaml is here)."
        ),
    ] = None,
    repick_ports: Annotated[
        bool, typer.Option("--repick-ports", help="Choose other ports for those that are taken.")
    ] = False,
    min_free_mb: Annotated[int, typer.Option(help="Refuse to start on a disk with less than this.")] = 500,
    module: Annotated[str, typer.Option(help="Module with Dagster's definitions.")] = "market_pipeline.definitions",
) -> None:
    """Start the stack and wait until every part does its work."""
    from market_pipeline.local.components import select
    from market_pipeline.local.environment import project_folder
    from market_pipeline.local.stack import Stack

    stack = Stack(
        home,
        select(only, dagster=dagster),
        module=module,
        project_dir=project_folder(project_dir),
        min_free_mb=min_free_mb,
        repick_ports=repick_ports,
    )
    if (state := stack.state()) is not None and state.phase == "running":
        _say_running(stack, state)
        return
    if foreground:
        from market_pipeline.local.supervisor import run_here

        raise typer.Exit(run_here(stack.options()))
    began = time.monotonic()
    with _progress() as show:
        state = stack.start(show)
    Console().print(f"ready in {time.monotonic() - began:.1f} s, in {stack.home.root}", highlight=False, soft_wrap=True)
    _print_addresses(state)


def down(
    home: HomeOption = DEFAULT_HOME,
    forget: Annotated[
        bool, typer.Option("--forget", help="Also take this stack's lines out of the .env of this folder.")
    ] = False,
) -> None:
    """Stop the stack in reverse order and wait until nothing of it is left."""
    from market_pipeline.local.environment import clear_dotenv
    from market_pipeline.local.stack import Stack

    stack = Stack(home)
    with _progress() as show:
        stopped = stack.stop(show)
    Console().print("stopped" if stopped else f"there was nothing to stop in {stack.home.root}", soft_wrap=True)
    if forget and clear_dotenv(Path.cwd(), stack.home):
        Console().print("its lines are out of .env")


def status(
    home: HomeOption = DEFAULT_HOME, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Show every component, the services, spool and streams; exit code 1 unless all components do their work."""
    import msgspec

    from market_pipeline.cli.road import road_json, spool_table
    from market_pipeline.local.stack import Stack

    stack = Stack(home)
    state = stack.state()
    spool = _read_spool(stack)
    if as_json:
        body = {"home": str(stack.home.root), "running": state is not None, "stack": state}
        body |= road_json(spool, _read_bus(stack, state)[0])
        typer.echo(msgspec.json.format(msgspec.json.encode(body)).decode())
    elif state is None:
        Console().print(f"no stack is running in {stack.home.root}: market-pipeline up", soft_wrap=True)
    else:
        _console().print(_table(state, details=True))
        _print_services(stack, state)
        _print_streams(stack, state)
    if spool and not as_json:
        _console().print(spool_table(spool))
    if state is None or state.phase != "running" or not state.healthy:
        raise typer.Exit(1)


def doctor(home: HomeOption = DEFAULT_HOME) -> None:
    """Check machine, files, servers and vendor and say what to do; exit code 1 when something is wrong."""
    from market_pipeline.local.doctor import examine
    from market_pipeline.local.layout import Home

    console = _console()
    table = Table("check", "verdict", "seen", "what to do", box=SIMPLE_HEAD, pad_edge=False)
    wrong = 0
    with log_to_stderr(), console.status("checking"):
        for check in examine(Home.at(home)):
            table.add_row(check.name, _VERDICTS[check.verdict], check.seen, check.advice)
            wrong += check.verdict == "wrong"
    console.print(table)
    if wrong:
        raise typer.Exit(1)


def _print_services(stack: Stack, state: StackState) -> None:
    """Show the live services, where NATS can be asked for them."""
    from market_pipeline.cli.run import read_services, services_table

    bus = state.component("nats")
    if bus is None or bus.state != "ready":
        return
    try:
        reports = read_services(stack.settings)
    except BusError as error:
        _console().print(f"live services cannot be asked for: {error}", style="yellow")
        return
    if reports:
        _console().print(services_table(reports))
    else:
        _console().print("no live service runs (turn on the sensor keep_live in the UI, or market-pipeline run all)")


def _print_streams(stack: Stack, state: StackState) -> None:
    """Show the streams and the unread dead letters, where NATS can be asked for them."""
    from market_pipeline.cli.road import streams_table, unread_text

    found, why = _read_bus(stack, state)
    if why:
        _console().print(f"the streams cannot be asked for: {why}", style="yellow")
    if found is not None:
        _console().print(streams_table(found))
        if text := unread_text(found):
            _console().print(text, style="red", highlight=False)


def _read_spool(stack: Stack) -> list[FolderStatus]:
    """Return what lies in the spool; where that cannot be read, say why and show the rest."""
    from market_pipeline.bus.spool import spool_root, spool_status

    try:
        return spool_status(spool_root(stack.settings)) if stack.home.root.exists() else []
    except SpoolError as error:
        Console(stderr=True).print(str(error), style="yellow", soft_wrap=True)
        return []


def _read_bus(stack: Stack, state: StackState | None) -> tuple[BusStatus | None, str]:
    """Return what NATS says of its streams; None, and why, while it cannot be asked."""
    from market_pipeline.bus.overview import read_bus_status

    bus = state.component("nats") if state is not None else None
    if bus is None or bus.state != "ready":
        return None, ""
    try:
        with log_to_stderr():
            return read_bus_status(stack.settings), ""
    except BusError as error:
        return None, str(error)


def _console() -> Console:
    """Return a console that does not squeeze tables into 80 columns when the output goes to a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 140))


def _say_running(stack: Stack, state: StackState) -> None:
    ui = state.component("dagster-webserver")
    where = f", UI at {ui.address}" if ui else ""
    Console().print(
        f"already running in {stack.home.root} (supervisor {state.pid}){where}", highlight=False, soft_wrap=True
    )
    absent = [name for name in stack.components if state.component(name) is None]
    if absent:
        Console().print(f"without {', '.join(absent)}: to add them, market-pipeline down, then up", highlight=False)
    if not state.healthy:
        Console().print("but not everything is ready: market-pipeline status, market-pipeline doctor", style="red")
        raise typer.Exit(1)


def _print_addresses(state: StackState) -> None:
    for component in state.components:
        if component.address:
            Console().print(f"  {component.name:<18} {component.address}", highlight=False)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Yield a function that shows a state: a live table on a terminal, else one line a change."""
    console = Console()
    if console.is_terminal:
        with Live(console=console, transient=True, refresh_per_second=10) as live:
            yield lambda state: live.update(_table(state))
        return
    shown: dict[str, str] = {}

    def lines(state: StackState) -> None:
        for component in state.components:
            if shown.get(component.name) != component.state:
                shown[component.name] = component.state
                console.print(f"{component.name:<18} {component.state}", highlight=False)

    yield lines


def _table(state: StackState, *, details: bool = False) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, width in (("component", 17), ("state", 10), ("pid", 7)):
        table.add_column(name, no_wrap=True, min_width=width)
    for name in ("address", "up", "restarts", "health"):
        table.add_column(name, overflow="fold")
    now = time.time()
    for component in state.components:
        style = _STYLES.get(component.state, "")
        since = component.ready_at if component.state in ("ready", "unhealthy") else None
        health = component.detail if details else component.detail.partition("\n")[0][:60]
        if not health and component.probe_ms is not None and component.probed_at is not None and since:
            health = f"{component.probe_ms:.0f} ms, {max(0.0, now - component.probed_at):.0f} s ago"
        if details and component.last_exit and not component.detail:
            health += f"; before: {component.last_exit}"
        table.add_row(
            component.name,
            f"[{style}]{component.state}[/]" if style else component.state,
            str(component.pid or ""),
            component.address,
            _duration(now - since) if since else "",
            str(component.restarts),
            health,
        )
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

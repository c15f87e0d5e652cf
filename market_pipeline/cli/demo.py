"""`demo`: from nothing to checked bars of every timeframe."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from market_pipeline.cli.stack import DEFAULT_HOME, HomeOption


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    home: HomeOption = DEFAULT_HOME,
    min_free_mb: Annotated[int, typer.Option(help="Refuse to start on a disk with less than this.")] = 500,
) -> None:
    """Start the local stack, load history through Dagster into every timeframe, check it, and show a summary."""
    from market_pipeline.local.demo import run_demo

    console = Console()
    # A pipe has no width: tables must not be cut to 80 columns in a log.
    run_demo(home, console if console.is_terminal else Console(width=120), min_free_mb=min_free_mb)

"""`demo`: from nothing to checked bars of every timeframe."""

from __future__ import annotations

import typer
from rich.console import Console

from market_pipeline.cli.stack import DEFAULT_HOME, HomeOption


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(home: HomeOption = DEFAULT_HOME) -> None:
    """Start the local stack, load history through Dagster into every timeframe, check it, and show a summary."""
    from market_pipeline.local.demo import run_demo

    run_demo(home, Console())

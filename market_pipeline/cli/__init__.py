"""`market-pipeline`: the command line.

Each module of this package that has `register(app)` adds its commands; its heavy imports belong inside the commands,
so that `--help` is quick.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import typer
from rich.console import Console

from market_pipeline.errors import BusUnreachable, MarketPipelineError, StoreUnreachable


def build_app() -> typer.Typer:
    """Return the application with the commands of every module of this package."""
    app = typer.Typer(
        help="A self-hosted market data platform: history, derived timeframes and live bars.",
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,  # locals hold passwords
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        register = getattr(importlib.import_module(f"{__name__}.{module}"), "register", None)
        if register is not None:
            register(app)
    return app


def main() -> None:
    """Run one command; an error of ours becomes one sentence, with what to do, and exit code 1."""
    try:
        build_app()()
    except MarketPipelineError as error:
        said = f"market-pipeline: {error}"
        if isinstance(error, StoreUnreachable | BusUnreachable):
            said += ". The local stack: market-pipeline status, market-pipeline up"
        Console(stderr=True, soft_wrap=True).print(said, style="red", markup=False, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)

"""The command line: `python -m market_pipeline.local.clickhouse --path DIR --port N --password-file FILE`."""

from __future__ import annotations

import os

PARENT = os.getppid()  # as early as possible: a parent may end while this process is still importing

import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated  # noqa: E402

import structlog  # noqa: E402
import typer  # noqa: E402

from market_pipeline.errors import LocalStackError  # noqa: E402
from market_pipeline.local.clickhouse.options import Limits, Options, half_of_memory  # noqa: E402
from market_pipeline.local.clickhouse.server import serve  # noqa: E402

MIB = 1 << 20


def main(
    path: Annotated[Path, typer.Option(help="Folder of the data; made if absent.")],
    password_file: Annotated[Path, typer.Option(help="File of mode 0600; a password is generated if it is absent.")],
    port: Annotated[int, typer.Option(help="Port to listen on, 0 for any free one.", min=0, max=65535)] = 8123,
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    user: Annotated[str, typer.Option(help="The one user.")] = "default",
    ready_file: Annotated[Path | None, typer.Option(help="Write port and pid there, as JSON, once ready.")] = None,
    lock_fd: Annotated[
        int | None, typer.Option(help="Inherited descriptor of the folder's server.lock, locked.")
    ] = None,
    die_with_parent: Annotated[bool, typer.Option("--die-with-parent", help="Stop when the parent ends.")] = False,
    slots: Annotated[int, typer.Option(help="Statements at a time; more wait.", min=1)] = 32,
    max_body: Annotated[int, typer.Option(help="Bytes of a request's body, inflated.", min=1)] = 512 * MIB,
    receive_timeout: Annotated[float, typer.Option(help="Seconds to wait for more of a body.", min=0.1)] = 300.0,
    max_memory: Annotated[int | None, typer.Option(help="Bytes for the engine; half of the machine's.", min=1)] = None,
    max_execution_time: Annotated[int, typer.Option(help="Seconds for a statement, 0 for any.", min=0)] = 600,
    min_free: Annotated[int, typer.Option(help="Bytes of free disk without which not to start.", min=0)] = 128 * MIB,
    compress_answers: Annotated[
        bool,
        typer.Option("--compress-answers", help="Compress answers for clients that ask; on loopback it costs time."),
    ] = False,
) -> None:
    """Serve a chDB folder over ClickHouse's HTTP interface, on loopback."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,  # plain: no local variables, which may be secrets
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    options = Options(
        path=path,
        password_file=password_file,
        port=port,
        host=host,
        user=user,
        ready_file=ready_file,
        lock_fd=lock_fd,
        die_with_parent=die_with_parent,
        limits=Limits(slots=slots, max_body=max_body, receive_timeout=receive_timeout),
        max_memory=max_memory or half_of_memory(),
        max_execution_time=max_execution_time,
        min_free=min_free,
        compress=compress_answers,
    )
    try:
        serve(options, parent=PARENT)
    except LocalStackError as error:
        print(f"clickhouse: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    cli.command()(main)
    cli()

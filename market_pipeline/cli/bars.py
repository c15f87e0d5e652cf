"""`market-pipeline bars` and `market-pipeline trace`: the winning bars of a range, and where one bar came from."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import polars as pl

    from market_pipeline.stores.ingest_ledger import IngestRow

Home = Annotated[Path | None, typer.Option(help="The stack's folder.", envvar="MARKET_PIPELINE_HOME")]
_TERMINAL_ROWS = 20
_SHOWN = ("ts", "open", "high", "low", "close", "volume", "vwap", "trades", "complete", "source")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""

    @app.command()
    def bars(
        symbol: Annotated[str, typer.Argument(help="EUR/USD, EURUSD or C:EURUSD")],
        timeframe: Annotated[str, typer.Argument(help="1m, 5m, 15m, 30m, 1h, 4h, 1d or 1w")],
        start: Annotated[
            str | None, typer.Option("--from", help="First ts: 2024-01-31 or 2024-01-31T15:30, UTC.")
        ] = None,
        end: Annotated[str | None, typer.Option("--to", help="End, exclusive; default: now.")] = None,
        limit: Annotated[int | None, typer.Option(help="The newest so many bars of the range.", min=1)] = None,
        csv: Annotated[Path | None, typer.Option(help="Write CSV to this file (- for the terminal).")] = None,
        parquet: Annotated[Path | None, typer.Option(help="Write Parquet to this file.")] = None,
        home: Home = None,
    ) -> None:
        """Show the winning bars of a range, or write them to a file; without --from the newest ones."""
        if csv is not None and parquet is not None:
            raise typer.BadParameter("choose --csv or --parquet")
        to_file = csv is not None or parquet is not None
        if limit is None and (start is None or not to_file):
            limit = _TERMINAL_ROWS
        frame, found = _read(symbol, timeframe, start, end, limit, home)
        console = Console()
        if parquet is not None:
            frame.write_parquet(parquet)
        elif csv is not None and str(csv) != "-":
            frame.write_csv(csv)
        elif csv is not None:
            typer.echo(frame.write_csv(), nl=False)
            return
        if to_file:
            console.print(f"{frame.height:,} bars written to {parquet or csv}")
            return
        console.print(_bars_table(frame, symbol, timeframe))
        if frame.height < found:
            console.print(f"the newest {frame.height:,} of {found:,} bars; --limit shows more")

    @app.command()
    def trace(
        symbol: Annotated[str, typer.Argument(help="EUR/USD, EURUSD or C:EURUSD")],
        timeframe: Annotated[str, typer.Argument(help="1m, 5m, 15m, 30m, 1h, 4h, 1d or 1w")],
        ts: Annotated[str, typer.Argument(help="Open of the window: 2024-01-31T15:30, UTC")],
        home: Home = None,
    ) -> None:
        """Show every stored row of one bar, and the batches that brought them with the time of every stage."""
        from market_pipeline.instruments_file import load_instruments
        from market_pipeline.market import timeframes
        from market_pipeline.read import moment
        from market_pipeline.settings import load_settings
        from market_pipeline.stores import open_stores

        settings = load_settings(home)
        key = load_instruments(settings).get(symbol).key
        opened = timeframes.floor(moment(ts, "ts"), timeframe)
        with open_stores(settings, migrate=False) as stores:
            rows = stores.bars.rows_of_bar(key, timeframe, opened)
            lines = stores.ingest.trace_bar(key, timeframe, opened)
        console = Console()
        if rows.is_empty():
            console.print(f"{symbol} {timeframe} {opened:%Y-%m-%d %H:%M:%S} UTC: no row is stored")
            raise typer.Exit(1)
        console.print(_rows_table(rows, f"{symbol} {timeframe} {opened:%Y-%m-%d %H:%M:%S} UTC: stored rows"))
        if lines:
            console.print(_batches_table(lines))
        else:
            console.print("The ingest ledger keeps batches for 90 days; those of this bar are older.")


def _read(
    symbol: str, timeframe: str, start: str | None, end: str | None, limit: int | None, home: Path | None
) -> tuple[pl.DataFrame, int]:
    """Return the bars to show, and how many the range holds."""
    from market_pipeline import read
    from market_pipeline.settings import load_settings

    settings = load_settings(home)
    until = read.moment(end, "--to") if end is not None else datetime.now(UTC)
    if start is not None:
        frame = read.bars(symbol, timeframe, start, until, settings=settings)
    else:
        frame = read.newest(symbol, timeframe, limit or _TERMINAL_ROWS, until, settings=settings)
    return (frame if limit is None else frame.tail(limit)), frame.height


def _bars_table(frame: pl.DataFrame, symbol: str, timeframe: str) -> Table:
    table = Table(title=f"{frame['symbol'][0] if frame.height else symbol} {timeframe}, UTC")
    for name in _SHOWN:
        table.add_column(name, justify="left" if name in ("ts", "source") else "right")
    for row in frame.select(_SHOWN).iter_rows(named=True):
        table.add_row(*(_shown(value) for value in row.values()))
    return table


def _rows_table(rows: pl.DataFrame, title: str) -> Table:
    names = ("source", "origin", "open", "high", "low", "close", "volume", "vwap", "trades", "complete", "revision")
    table = Table(title=title)
    for name in (*names, "state", "batch_id", "ingested_at"):
        table.add_column(name)
    for row in rows.iter_rows(named=True):
        state = "withdrawn" if row["is_deleted"] else ""
        values = [*(row[name] for name in names), state, row["batch_id"], row["ingested_at"]]
        table.add_row(*(_shown(value) for value in values))
    return table


def _batches_table(lines: list[IngestRow]) -> Table:
    table = Table(title="Batches that brought them")
    names = ("batch_id", "source", "outcome", "rows", "run_id", "vendor_request_id")
    stages = (
        "fetched_at",
        "received_at",
        "decoded_at",
        "encoded_at",
        "published_at",
        "bridge_received_at",
        "inserted_at",
    )
    for name in (*names, *stages):
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*(_shown(getattr(line, name)) for name in (*names, *stages)))
    return table


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")[: 23 if value.microsecond else 19]
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)

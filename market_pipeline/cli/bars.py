"""`market-pipeline bars` and `market-pipeline trace`: the winning bars of a range, and where one bar came from."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import polars as pl

    from market_pipeline.stores.ingest_ledger import IngestRow

Home = Annotated[Path | None, typer.Option(help="The stack's folder.", envvar="MARKET_PIPELINE_HOME")]
_TERMINAL_ROWS = 20
_SHOWN = ("ts", "open", "high", "low", "close", "volume", "trades", "complete")
_FACTS = ("origin", "open", "high", "low", "close", "volume", "vwap", "trades", "complete", "revision")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""

    @app.command()
    def bars(
        symbol: Annotated[str, typer.Argument(help="EUR/USD, EURUSD or C:EURUSD")],
        timeframe: Annotated[str, typer.Argument(help="1s (live), 1m, 5m, 15m, 30m, 1h, 4h, 1d or 1w")],
        start: Annotated[
            str | None, typer.Option("--from", help="First ts: 2024-01-31 or 2024-01-31T15:30, UTC.")
        ] = None,
        end: Annotated[str | None, typer.Option("--to", help="End, exclusive; default: --as-of, else now.")] = None,
        as_of: Annotated[
            str | None, typer.Option(help="Show what was known at this moment: 2026-11-05T10:00, UTC; default: now.")
        ] = None,
        limit: Annotated[int | None, typer.Option(help="The newest so many bars of the range.", min=1)] = None,
        csv: Annotated[bool, typer.Option("--csv", help="Write CSV, to FILE or the standard output.")] = False,
        parquet: Annotated[
            bool, typer.Option("--parquet", help="Write Parquet, to FILE or the standard output.")
        ] = False,
        file: Annotated[Path | None, typer.Argument(help="Where --csv or --parquet write to.")] = None,
        home: Home = None,
    ) -> None:
        """Show the winning bars of a range, or write them to a file; without --from the newest ones.

        Exit code 1 when there is none to show; a file without a bar is a file.
        """
        if csv and parquet:
            raise typer.BadParameter("choose --csv or --parquet")
        if file is not None and not (csv or parquet):
            raise typer.BadParameter(f"say in which format {file} is to be written: --csv or --parquet")
        if limit is None and (start is None or not (csv or parquet)):
            limit = _TERMINAL_ROWS
        frame, found = _read(symbol, timeframe, start, end, as_of, limit, home)
        console = Console()
        if frame.is_empty():
            Console(stderr=True, soft_wrap=True).print(_none_found(symbol, timeframe, home), highlight=False)
        if csv or parquet:
            _write(frame, file, as_csv=csv)
            if file is not None:
                console.print(f"{frame.height:,} bars written to {file}", soft_wrap=True)
            return
        if frame.is_empty():
            raise typer.Exit(1)
        console.print(_bars_table(frame, symbol, timeframe, as_of))
        if frame.height < found:
            console.print(f"the newest {frame.height:,} of {found:,} bars; --limit shows more")

    @app.command()
    def trace(
        symbol: Annotated[str, typer.Argument(help="EUR/USD, EURUSD or C:EURUSD")],
        timeframe: Annotated[str, typer.Argument(help="1s, 1m, 5m, 15m, 30m, 1h, 4h, 1d or 1w")],
        ts: Annotated[str, typer.Argument(help="Open of the window: 2024-01-31T15:30, UTC")],
        home: Home = None,
    ) -> None:
        """Show every version of one bar, and the batches that brought them with the time of every stage."""
        from market_pipeline.instruments_file import load_instruments
        from market_pipeline.market import timeframes
        from market_pipeline.read import moment
        from market_pipeline.settings import load_settings
        from market_pipeline.stores import open_stores
        from market_pipeline.stores.seconds import AllBarStore

        settings = load_settings(home)
        key = load_instruments(settings).get(symbol).key
        opened = timeframes.floor(moment(ts, "ts"), timeframe)
        with open_stores(settings, migrate=False) as stores:
            rows = AllBarStore(stores.client).rows_of_bar(key, timeframe, opened)
            lines = stores.ingest.trace_bar(key, timeframe, opened)
        console = Console()
        if rows.is_empty():
            console.print(f"{symbol} {timeframe} {opened:%Y-%m-%d %H:%M:%S} UTC: no row is stored")
            raise typer.Exit(1)
        console.print(_rows_table(rows, f"{symbol} {timeframe} {opened:%Y-%m-%d %H:%M:%S} UTC: stored rows"))
        if lines:
            for line in lines:
                console.print(_batch_table(line))
        else:
            console.print("The ingest ledger keeps batches for 90 days; those of this bar are older.")


def _read(
    symbol: str,
    timeframe: str,
    start: str | None,
    end: str | None,
    as_of: str | None,
    limit: int | None,
    home: Path | None,
) -> tuple[pl.DataFrame, int]:
    """Return the bars to show, and how many the range holds."""
    from market_pipeline import read
    from market_pipeline.settings import load_settings

    settings = load_settings(home)
    known = read.moment(as_of, "--as-of") if as_of is not None else None
    since = read.moment(start, "--from") if start is not None else None
    until = read.moment(end, "--to") if end is not None else known or datetime.now(UTC)
    if since is not None:
        frame = read.bars(symbol, timeframe, since, until, as_of=known, settings=settings)
    else:
        frame = read.newest(symbol, timeframe, limit or _TERMINAL_ROWS, until, as_of=known, settings=settings)
    return (frame if limit is None else frame.tail(limit)), frame.height


def _none_found(symbol: str, timeframe: str, home: Path | None) -> str:
    """Return the sentence that says what is stored, where the range asked for has nothing of it."""
    from market_pipeline import read
    from market_pipeline.settings import load_settings

    stored = read.span(symbol, timeframe, settings=load_settings(home))
    if stored is None:
        return f"no bars of {symbol} {timeframe} are stored: load them, or start the live services"
    first, last, count = stored
    return (
        f"no bars of {symbol} {timeframe} in this range; stored are {count:,}, "
        f"from {_shown(first)} to {_shown(last)} UTC"
    )


def _write(frame: pl.DataFrame, file: Path | None, *, as_csv: bool) -> None:
    """Write the bars to a file, or to the standard output, which must not be a terminal for Parquet."""
    if file is None and not as_csv and sys.stdout.isatty():
        raise typer.BadParameter("Parquet is no text: name a file, or send the output into one")
    target = sys.stdout.buffer if file is None else file
    frame.write_csv(target) if as_csv else frame.write_parquet(target)


def _bars_table(frame: pl.DataFrame, symbol: str, timeframe: str, as_of: str | None = None) -> Table:
    table = Table(
        title=f"{frame['symbol'][0] if frame.height else symbol} {timeframe}, UTC"
        + (f", as of {as_of}" if as_of else ""),
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in _SHOWN:
        table.add_column(name, justify="left" if name == "ts" else "right", no_wrap=True)
    for row in frame.select(_SHOWN).iter_rows(named=True):
        table.add_row(*(f"{v:.6g}" if n == "volume" else _shown(v) for n, v in row.items()))
    return table


def _rows_table(rows: pl.DataFrame, title: str) -> Table:
    """Return one column a stored row, so that any number of facts fits any terminal."""
    records = rows.to_dicts()
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("source")
    for record in records:
        table.add_column(str(record["source"]) + (" (withdrawn)" if record["is_deleted"] else ""), no_wrap=True)
    for name in (*_FACTS, "batch_id", "ingested_at"):
        table.add_row(name, *(_shown(record[name]) for record in records))
    return table


def _batch_table(line: IngestRow) -> Table:
    """Return what a batch was and when it passed each stage, with the milliseconds since the stage before."""
    table = Table(title=f"batch {line.batch_id}", box=SIMPLE_HEAD, show_header=False, title_justify="left")
    # of a live flush: `*` where it brought bars of several symbols
    for name in ("symbol", "timeframe", "source", "outcome"):
        table.add_row(name, _shown(getattr(line, name)), "")
    for name in ("rows", "new_rows", "restated_rows", "unchanged_rows", "subject", "stream_seq"):
        table.add_row(name, _shown(getattr(line, name)), "")
    for name in ("run_id", "correlation_id", "vendor_request_id"):
        table.add_row(name, _shown(getattr(line, name)), "")
    from market_pipeline.stores.ingest_ledger import STAGES

    before: datetime | None = None
    for stage in STAGES:
        name = f"{stage}_at"
        at = getattr(line, name)
        if at is None:
            continue
        table.add_row(name, _shown(at), "" if before is None else f"+{(at - before).total_seconds() * 1000:.0f} ms")
        before = at
    return table


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        if not (value.second or value.microsecond):
            return value.strftime("%Y-%m-%d %H:%M")
        if not value.microsecond:
            return value.strftime("%Y-%m-%d %H:%M:%S")
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")[:23]
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)

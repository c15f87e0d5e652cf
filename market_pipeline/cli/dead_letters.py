"""`market-pipeline dead-letters`: what could never be stored: list it, look at it, replay it, drop it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from market_pipeline.cli.logs import log_to_stderr

if TYPE_CHECKING:
    from market_pipeline.bus.dead_letter_box import DeadLetterBox
    from market_pipeline.bus.dead_letters import DeadLetter, Selection

Answer = TypeVar("Answer")

Home = Annotated[Path | None, typer.Option(help="The stack's folder.", envvar="MARKET_PIPELINE_HOME")]
Seqs = Annotated[list[int] | None, typer.Argument(help="Numbers of letters, as `list` shows them.", min=1)]
ReasonOption = Annotated[str, typer.Option("--reason", help="Only this reason, such as digest_mismatch.")]
StreamOption = Annotated[str, typer.Option("--stream", help="Only from this stream, such as LIVE.")]
Days = Annotated[float | None, typer.Option("--older-than", help="Only those that came so many days ago.", min=0)]
Limit = Annotated[int, typer.Option("--limit", help="At most so many, oldest first.", min=1)]
Everything = Annotated[bool, typer.Option("--all", help="Every letter of the selection, not only those named.")]

_ROWS, _HEX_BYTES, _HEX_WIDTH = 5, 128, 16


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    letters = typer.Typer(
        help="What could never be stored, with the reason: list, show, replay, acknowledge, drop.", no_args_is_help=True
    )
    app.add_typer(letters, name="dead-letters")

    @letters.command("list")
    def list_(
        reason: ReasonOption = "",
        stream: StreamOption = "",
        older_than: Days = None,
        limit: Limit = 50,
        unread: Annotated[bool, typer.Option("--unread", help="Only those that nobody has acknowledged.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
        home: Home = None,
    ) -> None:
        """List dead letters, oldest first, and how many there are of each kind."""
        selection = _selection(reason, stream, older_than)

        async def work(box: DeadLetterBox) -> tuple[list[tuple[DeadLetter, bool]], int, int]:
            from market_pipeline.bus.dead_letter_box import within

            read = await box.read_places()
            shown: list[tuple[DeadLetter, bool]] = []
            found = new = 0
            async for letter in box.walk(selection, headers_only=True):
                is_new = not within(read, letter.seq)
                found, new = found + 1, new + is_new
                if len(shown) < limit and (is_new or not unread):
                    shown.append((letter, is_new))
            return shown, found, new

        shown, found, new = _run(home, work)
        if as_json:
            for letter, is_new in shown:
                print(json.dumps({**_facts(letter), "unread": is_new}))
            return
        console = Console()
        if shown:
            console.print(_table(shown))
        console.print(f"{found:,} dead letters, {new:,} unread" + (f"; {len(shown):,} shown" if shown else ""))

    @letters.command()
    def show(
        seq: Annotated[int, typer.Argument(help="Number of the letter.", min=1)],
        as_json: Annotated[bool, typer.Option("--json", help="As JSON, the payload in hexadecimal digits.")] = False,
        home: Home = None,
    ) -> None:
        """Show one dead letter: where it came from, its errors, its headers, and what its payload holds."""
        letter = _run(home, lambda box: box.get(seq))
        if as_json:
            print(json.dumps({**_facts(letter), "headers": dict(letter.headers), "payload_hex": letter.payload.hex()}))
            return
        console = Console(soft_wrap=True)
        for name, value in _facts(letter).items():
            console.print(f"[bold]{name}[/bold]", end=" ")
            console.print(str(value), markup=False, highlight=False)
        for name, value in sorted(letter.headers.items()):
            console.print(f"  {name}: {value}", markup=False, highlight=False)
        console.print(_payload(letter), markup=False, highlight=False)

    @letters.command()
    def replay(
        seqs: Seqs = None,
        reason: ReasonOption = "",
        stream: StreamOption = "",
        older_than: Days = None,
        limit: Annotated[int | None, typer.Option("--limit", help="At most so many, oldest first.", min=1)] = None,
        everything: Everything = False,
        home: Home = None,
    ) -> None:
        """Send dead letters again to where they came from, once their cause is mended; what fails again comes back."""
        from market_pipeline.bus.dead_letter_box import NotReplayable, Replayed

        selection = _selection(reason, stream, older_than)
        _choose(seqs, reason, stream, everything)

        async def work(box: DeadLetterBox) -> Replayed:
            if not seqs:
                return await box.replay_all(selection, limit)
            done = Replayed()
            for seq in seqs:
                try:
                    await box.replay(await box.get(seq))
                    done.replayed += 1
                except NotReplayable as error:
                    done.refuse(seq, str(error))
            return done

        done = _run(home, work)
        console = Console(soft_wrap=True)
        for seq, why in done.refusals:
            console.print(f"{seq}: {why}", markup=False, highlight=False)
        console.print(f"{done.replayed:,} replayed, {done.refused:,} cannot be replayed as they are")
        if done.refused:
            raise typer.Exit(1)

    @letters.command()
    def ack(
        seqs: Seqs = None,
        reason: ReasonOption = "",
        stream: StreamOption = "",
        everything: Everything = False,
        home: Home = None,
    ) -> None:
        """Mark dead letters as read: they stay, and the asset check `dead_letters` lets them pass."""
        selection = _selection(reason, stream, None)
        _choose(seqs, reason, stream, everything)

        async def work(box: DeadLetterBox) -> int:
            chosen = [(await box.get(seq)).seq for seq in seqs or []]
            if not seqs:
                chosen = [letter.seq async for letter in box.walk(selection, headers_only=True)]
            await box.acknowledge(chosen)
            return len(chosen)

        print(f"{_run(home, work):,} marked as read")

    @letters.command()
    def drop(
        seqs: Seqs = None,
        reason: ReasonOption = "",
        stream: StreamOption = "",
        older_than: Days = None,
        everything: Everything = False,
        yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
        home: Home = None,
    ) -> None:
        """Remove dead letters for good."""
        selection = _selection(reason, stream, older_than)
        _choose(seqs, reason, stream, everything)

        async def choose(box: DeadLetterBox) -> list[int]:
            return list(seqs) if seqs else [letter.seq async for letter in box.walk(selection, headers_only=True)]

        chosen = _run(home, choose)
        if chosen and not yes:
            typer.confirm(f"Remove {len(chosen):,} dead letters for good?", abort=True)

        async def work(box: DeadLetterBox) -> int:
            return sum([await box.drop(seq) for seq in chosen])

        print(f"{_run(home, work):,} dropped")


def _run(home: Path | None, work: Callable[[DeadLetterBox], Awaitable[Answer]]) -> Answer:
    """Do something with the box of the stack."""
    from market_pipeline.bus.dead_letter_box import DeadLetterBox
    from market_pipeline.bus.session import open_bus
    from market_pipeline.settings import load_settings

    settings = load_settings(home)

    async def run() -> Answer:
        async with open_bus(settings.nats, "dead letters") as bus:
            return await work(DeadLetterBox(bus))

    with log_to_stderr():
        return asyncio.run(run())


def _selection(reason: str, stream: str, older_than: float | None) -> Selection:
    from market_pipeline.bus.dead_letters import Selection

    until = None if older_than is None else datetime.now(UTC) - timedelta(days=older_than)
    return Selection(reason, stream, until=until)


def _choose(seqs: list[int] | None, reason: str, stream: str, everything: bool) -> None:
    if not (seqs or reason or stream or everything):
        raise typer.BadParameter("name letters, or choose them by --reason or --stream, or say --all")
    if seqs and (reason or stream or everything):
        raise typer.BadParameter("either name letters or choose them, not both")


def _facts(letter: DeadLetter) -> dict[str, Any]:
    return {
        "seq": letter.seq,
        "at": letter.at.isoformat(timespec="milliseconds") if letter.at else "",
        "reason": letter.reason.value,
        "stream": letter.stream,
        "stream_seq": letter.stream_seq,
        "subject": letter.subject,
        "attempts": letter.attempts,
        "correlation_id": letter.correlation_id,
        "bytes": letter.size,
        "first_error": letter.first_error,
        "last_error": letter.last_error,
    }


def _table(shown: list[tuple[DeadLetter, bool]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for name in ("seq", "at (UTC)", "reason", "from", "last error"):
        table.add_column(name, justify="right" if name == "seq" else "left", overflow="fold")
    for letter, is_new in shown:
        table.add_row(
            f"{letter.seq}{'*' if is_new else ''}",
            f"{letter.at:%Y-%m-%d %H:%M:%S}" if letter.at else "",
            letter.reason.value,
            f"{letter.subject} #{letter.stream_seq}",
            letter.last_error[:120],
            style="" if is_new else "dim",
        )
    table.caption = "* unread"
    return table


def _payload(letter: DeadLetter) -> str:
    """Return what a payload holds: its first rows where it is bars, its text, or its first bytes."""
    from market_pipeline import payload
    from market_pipeline.errors import UnreadableBatch

    try:
        frame = payload.decode(letter.payload)
        return f"{frame.height:,} rows:\n{frame.head(_ROWS).write_csv()}"
    except UnreadableBatch:
        pass
    try:
        text = letter.payload[:2000].decode()
        if text.isprintable() or text.strip().isprintable():
            return text
    except UnicodeDecodeError:
        pass
    head = letter.payload[:_HEX_BYTES]
    lines = [head[n : n + _HEX_WIDTH] for n in range(0, len(head), _HEX_WIDTH)]
    dump = "\n".join(
        f"{n * _HEX_WIDTH:04x}  {line.hex(' '):<48} {''.join(chr(b) if 32 <= b < 127 else '.' for b in line)}"
        for n, line in enumerate(lines)
    )
    return f"{len(letter.payload):,} bytes, the first {len(head)}:\n{dump}"

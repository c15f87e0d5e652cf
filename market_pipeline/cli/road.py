"""What `status` shows of the road of a batch: the spool on this disk, the streams, the unread dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from market_pipeline.bus.overview import BusStatus
    from market_pipeline.bus.spool import FolderStatus

MB = 1024 * 1024


def spool_table(folders: Sequence[FolderStatus]) -> Table:
    """Return the folders of the spool as a table."""
    table = Table("spool", "who has it", "records", "MB", "oldest", "set aside", box=SIMPLE_HEAD, pad_edge=False)
    for each in folders:
        who = "[yellow]nobody: a bridge drains it[/]" if each.adoptable else "in use" if each.locked else ""
        who = "[red]it cannot be read[/]" if each.error else who
        name = f"{each.name or each.path.name} (pid {each.pid} on {each.host})" if each.pid else each.path.name
        table.add_row(
            name,
            who,
            f"{each.records:,}",
            f"{each.bytes / MB:,.1f}",
            "" if each.oldest_age_s is None else age(each.oldest_age_s),
            f"[red]{each.bad}[/] in {each.path / 'bad'}" if each.bad else "",
        )
    return table


def streams_table(status: BusStatus) -> Table:
    """Return the streams as a table."""
    table = Table("stream", "messages", "MB", "of MB", "oldest", "not stored", box=SIMPLE_HEAD, pad_edge=False)
    for each in status.streams:
        if not each.exists:
            table.add_row(each.name, "[yellow]not created yet[/]")
            continue
        style = "red" if each.full > 0.9 and not each.discards_old else ""
        lag = each.lag
        waiting = lag.num_pending + lag.num_ack_pending if lag is not None else 0
        table.add_row(
            each.name,
            f"{each.messages:,}",
            f"[{style}]{each.bytes / MB:,.1f}[/]" if style else f"{each.bytes / MB:,.1f}",
            f"{each.limit / MB:,.0f}" if each.limit else "no limit",
            "" if each.oldest_age_s is None else age(each.oldest_age_s),
            f"{waiting:,}, for {age(lag.oldest_age_s)}" if waiting and lag is not None else "",
        )
    return table


def unread_text(status: BusStatus) -> str:
    """Return a line on the dead letters that nobody has read; empty without any."""
    if not status.unread:
        return ""
    total = sum(count for _, _, count in status.unread)
    kinds = ", ".join(f"{count:,} {reason} of {stream}" for stream, reason, count in status.unread)
    return f"{total:,} dead letters are unread ({kinds}): market-pipeline dead-letters list --unread"


def road_json(folders: Sequence[FolderStatus], status: BusStatus | None) -> dict[str, Any]:
    """Return what both tables show for `--json`; streams and dead letters are null while NATS cannot be asked."""
    return {
        "spool": [{**asdict(each), "path": str(each.path)} for each in folders],
        "streams": None if status is None else [asdict(each) for each in status.streams],
        "dead_letters_unread": None
        if status is None
        else [{"stream": stream, "reason": reason, "letters": count} for stream, reason, count in status.unread],
    }


def age(seconds: float) -> str:
    """Return a time for a person, in its largest unit."""
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.0f} s"

"""Dead letters: what waits for a person, by where it came from and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from market_pipeline.orchestration.checks.verdict import Verdict

if TYPE_CHECKING:
    from market_pipeline.bus.dead_letter_box import Unread

_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "stream": pl.String,
    "reason": pl.String,
    "unread": pl.Int64,
    "newest": pl.Datetime("us", "UTC"),
    "newest letter": pl.Int64,
    "newest error": pl.String,
}


def judge_dead_letters(unread: Unread) -> Verdict:
    """Judge the unread letters: red while there is any."""
    numbers: dict[str, int | float | str] = {"unread dead letters": unread.total}
    if not unread.total:
        return Verdict("pass", "no dead letter is unread", numbers)
    rows = [
        (
            stream,
            reason,
            count,
            unread.newest[stream, reason].at,
            unread.newest[stream, reason].seq,
            unread.newest[stream, reason].last_error,
        )
        for (stream, reason), count in unread.counts.items()
    ]
    table = pl.DataFrame(rows, schema=_SCHEMA, orient="row").sort(
        "unread", "stream", "reason", descending=[True, False, False]
    )
    most = table.row(0, named=True)
    sentence = (
        f"{unread.total:,} messages or rows could not be stored and nobody has read why, most of them from "
        f"{most['stream']}, {most['reason']}: {most['newest error']}. Look with `market-pipeline dead-letters list`; "
        "mend the cause and replay them, or acknowledge or drop them"
    )
    return Verdict("error", sentence, numbers, table, "unread dead letters by kind")

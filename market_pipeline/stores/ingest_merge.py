"""Lines of the ingest ledger for live flushes: one for all symbols; one each would outnumber the bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from market_pipeline.stores.ingest_ledger import STAGES, IngestRow

SEVERAL = "*"
_COUNTS = (
    "rows",
    "new_rows",
    "restated_rows",
    "withdrawn_rows",
    "unchanged_rows",
    "superseded_rows",
    "rejected_rows",
)
_STAGES = tuple(f"{name}_at" for name in STAGES)


def merged_lines(lines: Sequence[IngestRow]) -> list[IngestRow]:
    """Return one line for all lines of a batch id, timeframe, source and outcome, in the order of the first of each.

    Counts are summed and so, wrapping, is the digest, which then is that of all rows together. Times are the first
    start, the last end, and of every stage the latest: what the slowest took. A symbol is `*` when there are several,
    and so is the symbol's part of the subject; the sequence is the smallest. The timeframe is never merged, since the
    end of a window, and so the latency, goes by it.
    """
    groups: dict[tuple[int, str, str, str], list[IngestRow]] = {}
    for line in lines:
        groups.setdefault((line.batch_id, line.timeframe, line.source, line.outcome), []).append(line)
    return [_merged(group) for group in groups.values()]


def _merged(group: Sequence[IngestRow]) -> IngestRow:
    first = group[0]
    if len(group) == 1:
        return first
    several = len({line.symbol for line in group}) > 1
    passed = {name: _latest(getattr(line, name) for line in group) for name in _STAGES}
    inserted_at = passed.pop("inserted_at")
    assert inserted_at is not None
    return replace(
        first,
        symbol=SEVERAL if several else first.symbol,
        subject=_starred(first.subject) if several else first.subject,
        stream_seq=min(line.stream_seq for line in group),
        digest=sum(line.digest for line in group) % 2**64,
        start_ts=min(line.start_ts for line in group),
        end_ts=max(line.end_ts for line in group),
        error="; ".join(dict.fromkeys(line.error for line in group if line.error)),
        inserted_at=inserted_at,
        **{name: sum(getattr(line, name) for line in group) for name in _COUNTS},
        **passed,  # type: ignore[arg-type]
    )


def _latest(times: Iterable[datetime | None]) -> datetime | None:
    return max((at for at in times if at is not None), default=None)


def _starred(subject: str) -> str:
    """Return a subject `stream.symbol.timeframe` with the symbol left open."""
    head, _, rest = subject.partition(".")
    _, _, last = rest.rpartition(".")
    return f"{head}.{SEVERAL}.{last}"

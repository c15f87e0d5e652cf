"""Which published minutes the store has not settled yet: pure bookkeeping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

Span = tuple[str, datetime, datetime]
"""Symbol, start and end (UTC)."""

ASKED_AT_ONCE = 1000


@dataclass(slots=True)
class _Flush:
    """What was published under one batch id. late: it was given out once, unsettled."""

    since: float
    rows: int = 0
    spans: list[Span] = field(default_factory=list)
    late: bool = False


class Unstored:
    """Keep the spans of published flushes until the store has settled them, and give each out then.

    A flush that is not settled after `late_s` is given out at once, so that its windows are derived without it, and
    again once it is settled: after an outage the backlog comes later than the first look. After `forget_s`, or where
    more than `most` spans wait, a flush is known by its time alone: what is known so is given out, by symbol as one
    span, when no late flush is left, since those before it in the stream are settled then too.
    """

    def __init__(self, *, late_s: float, forget_s: float, most: int) -> None:
        self._late_s, self._forget_s, self._most = late_s, forget_s, most
        self._flushes: dict[int, _Flush] = {}
        self._spans = 0
        self._forgotten: dict[str, tuple[datetime, datetime]] = {}

    def __len__(self) -> int:
        return len(self._flushes)

    def add(self, batch_id: int, rows: int, span: Span, now: float) -> None:
        """Note rows of a flush that are published; `now` is monotonic time."""
        flush = self._flushes.setdefault(batch_id, _Flush(now))
        flush.rows += rows
        flush.spans.append(span)
        self._spans += 1
        while self._spans > self._most and len(self._flushes) > 1:
            self._forget(next(iter(self._flushes)))

    def ids(self) -> list[int]:
        """Return the batch ids to ask the store about: those in time, and of the late ones the oldest thousand."""
        late = [batch_id for batch_id, flush in self._flushes.items() if flush.late]
        return late[:ASKED_AT_ONCE] + [batch_id for batch_id, flush in self._flushes.items() if not flush.late]

    def take(self, settled: Mapping[int, int], now: float) -> list[Span]:
        """Return the spans to derive now, given the rows that the store has settled of each batch id."""
        spans: list[Span] = []
        for batch_id, flush in list(self._flushes.items()):
            if settled.get(batch_id, 0) >= flush.rows:
                spans += self._pop(batch_id).spans
            elif now - flush.since > self._forget_s:
                self._forget(batch_id)
            elif now - flush.since > self._late_s and not flush.late:
                flush.late = True
                spans += flush.spans
        if self._forgotten and not any(flush.late for flush in self._flushes.values()):
            spans += [(symbol, *span) for symbol, span in self._forgotten.items()]
            self._forgotten.clear()
        return spans

    def _pop(self, batch_id: int) -> _Flush:
        flush = self._flushes.pop(batch_id)
        self._spans -= len(flush.spans)
        return flush

    def _forget(self, batch_id: int) -> None:
        for symbol, start, end in self._pop(batch_id).spans:
            known = self._forgotten.get(symbol, (start, end))
            self._forgotten[symbol] = min(known[0], start), max(known[1], end)

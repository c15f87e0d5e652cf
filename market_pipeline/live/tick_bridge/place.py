"""Where the tick bridge is in TICKS, and what it knows to have missed.

The consumer's ack floor cannot tell: the server moves it on when messages leave the stream by age or size. So the
bridge keeps its own place, after each commit and before the acknowledgements. A message above it that the stream does
not hold any more was never stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from market_pipeline.bus.tick_envelope import LATE, TickHeaders
from market_pipeline.bus.tick_numbers import BatchNumbers, Numbered
from market_pipeline.bus.tick_reader import StreamSpan
from market_pipeline.market.timeframes import from_ms, to_ms
from market_pipeline.stores.ticks import TickLoss

EXPIRED, MISSING = "expired", "missing"


class Place(msgspec.Struct, frozen=True):
    """Say how far the stream `stream` (when it was created) is stored: up to `seq`.

    missed: symbols (keys) that may lack ticks since a time (epoch ms) and have had no batch since, so that nobody knows
    yet up to when. numbers: the last batch of each symbol up to `seq`.
    """

    stream: str
    seq: int
    missed: dict[str, int] = {}
    numbers: dict[str, Numbered] = {}

    def moved(self, seq: int) -> Place:
        """Return the place after everything up to `seq` was stored."""
        return msgspec.structs.replace(self, seq=max(self.seq, seq))

    def with_hole(self, seq: int, stored_until: Mapping[str, datetime]) -> Place:
        """Return the place after the messages up to `seq` that are gone; `stored_until`: the last tick of each symbol.

        Every symbol may have been among them. One that missed something before goes on missing it.
        """
        missed = {symbol: to_ms(ts) for symbol, ts in stored_until.items()} | self.missed
        return Place(self.stream, max(self.seq, seq), missed, self._numbers_without(missed))

    def numbered(self, batches: Iterable[tuple[int, TickHeaders]]) -> tuple[Place, list[TickLoss]]:
        """Return the place with the numbers of batches (sequence, headers), and what is missing before them.

        Batches up to `seq` were numbered before. The place is to be kept only once the losses are recorded.
        """
        numbers = BatchNumbers(self.numbers)
        losses = []
        for seq, headers in batches:
            if seq > self.seq and (missed := numbers.missed(headers)) is not None:
                losses.append(TickLoss(headers.symbol, *missed, MISSING, headers.session_id, headers.collector_id))
        return msgspec.structs.replace(self, numbers=numbers.last), losses

    def losses(self, batches: Iterable[TickHeaders]) -> list[TickLoss]:
        """Return what the first batch of each symbol that missed something ends, heartbeats included.

        The interval begins with the last tick stored and ends when the batch begins, plus the time by which events may
        come late: what was in the hole came before the batch.
        """
        found: dict[str, TickLoss] = {}
        for headers in batches:
            since = self.missed.get(headers.symbol)
            if since is None or headers.symbol in found:
                continue
            end = (headers.first_ts or headers.alive_at) + LATE
            start = from_ms(since)
            if end > start:
                found[headers.symbol] = TickLoss(
                    headers.symbol, start, end, EXPIRED, headers.session_id, headers.collector_id
                )
        return list(found.values())

    def without(self, symbols: Iterable[str]) -> Place:
        """Return the place when the losses of the symbols are recorded."""
        if not self.missed:
            return self
        gone = set(symbols)
        return msgspec.structs.replace(self, missed={key: ms for key, ms in self.missed.items() if key not in gone})

    def unnumbered(self) -> Place:
        """Return the place from which batches may follow with any number."""
        return msgspec.structs.replace(self, numbers=self._numbers_without(self.numbers))

    def _numbers_without(self, symbols: Iterable[str]) -> dict[str, Numbered]:
        numbers = BatchNumbers(self.numbers)
        numbers.forget(symbols)
        return numbers.last


def resume(known: Place | None, span: StreamSpan, ack_floor: int) -> tuple[Place, int | None]:
    """Return where to go on in a stream that holds `span`, and up to which sequence messages are gone unstored.

    The second is None where nothing is missing. Without a place, or in another stream than the place is of, everything
    that the stream no longer holds counts as missing, even if it is nothing: the old stream may have held more.
    """
    before = max(0, span.first_seq - 1)  # a stream that never held anything begins at 0
    if known is None or known.stream != span.created or known.seq > span.last_seq:
        return Place(span.created, 0, known.missed if known else {}), before
    if before > known.seq:
        return known, before
    # Nothing left the stream above the place, so what is acknowledged was stored: by one who died before it said so.
    moved = known.moved(min(ack_floor, span.last_seq))
    return (moved if moved.seq == known.seq else moved.unnumbered()), None

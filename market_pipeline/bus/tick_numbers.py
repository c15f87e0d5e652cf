"""The numbers of tick batches: whoever reads a symbol's stream sees from them that a batch never came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from market_pipeline.bus.tick_envelope import LOSS_MARGIN, TickHeaders
from market_pipeline.market.timeframes import from_ms, to_ms


class Numbered(NamedTuple):
    """Say what was seen last of a symbol: the highest number in `epoch` (0: not known), up to where it was alive (ms).

    A tuple, since a checkpoint holds one of every symbol.
    """

    epoch: int
    number: int
    alive_ms: int


class BatchNumbers:
    """Tell what is missing between the batches of a symbol. `last`: by symbol; to be kept across a restart.

    Give every batch once it is sure that it was not given before: what a restart reads again was judged then. What was
    published twice is told from its number, and what a collector sends after it lost its lease from its epoch.
    """

    def __init__(self, last: Mapping[str, Numbered] | None = None) -> None:
        """Go on from what was seen."""
        self.last = dict(last or {})

    def begins_later(self, headers: TickHeaders) -> bool:
        """Say whether this is the first batch seen of its symbol, and not the first that there was."""
        return headers.symbol not in self.last and headers.number > headers.covers

    def missed(self, headers: TickHeaders) -> tuple[datetime, datetime] | None:
        """Take the next batch; return the time [start, end) whose ticks may be missing before it, None if none are.

        Where nothing is known of what went before, nothing is missing. Ticks come late by LOSS_MARGIN at most, as where
        a session ends: so far before the last sign of life and behind the first tick of this batch one may be missing.

        A collector that takes over says since when ticks may be lost by what it finds in the stream. Where that was
        wiped it finds nothing, or the last but one batch, while its predecessor's last is still on its way: whoever
        reads both sees the time between them.
        """
        known = self.last.get(headers.symbol)
        if known is not None and headers.epoch < known.epoch:
            return None
        again = known is not None and headers.epoch == known.epoch and headers.number <= known.number
        if again:
            return None
        self.last[headers.symbol] = Numbered(headers.epoch, headers.number, to_ms(headers.alive_at))
        if known is None or not headers.number:
            return None
        alive_at, taken_over = from_ms(known.alive_ms), headers.epoch != known.epoch
        awaited = 1 if taken_over else known.number + 1
        if known.number and headers.number - headers.covers >= awaited:
            return alive_at - LOSS_MARGIN, max(alive_at, headers.first_ts or headers.alive_at) + LOSS_MARGIN
        answers_from = headers.lost_from or headers.session_started
        if taken_over and answers_from > alive_at:
            return alive_at - LOSS_MARGIN, answers_from
        return None

    def forget(self, symbols: Iterable[str]) -> None:
        """Expect any number next: what is missing is told otherwise."""
        for symbol in symbols:
            if (known := self.last.get(symbol)) is not None:
                self.last[symbol] = known._replace(number=0)

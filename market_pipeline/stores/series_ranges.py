"""Ranges of series, and how many of them are laid into the parameters of one query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from market_pipeline.market.timeframes import to_ms

# Epoch milliseconds below 2^44 reach the year 2527; above lies room for a million series.
_PLACE_BITS = 44


class BatchRange(NamedTuple):
    """What a batch covers: one series (symbol key, timeframe, source), `start_ts` to `end_ts`, both inclusive, UTC."""

    symbol: str
    timeframe: str
    source: str
    start_ts: datetime
    end_ts: datetime


class SeriesDigest(NamedTuple):
    """Count and digest (`market.digest.value_digest`) of the final rows of a range, tombstones included."""

    rows: int
    digest: int


@dataclass(frozen=True)
class RangeSet:
    """Ranges as the parameters of series_digests.sql.

    `place` of a ts is its epoch ms plus its series' number in the upper bits; `places` are those of the ranges' first
    ts, in the order given.
    """

    places: list[int]
    parameters: dict[str, Any]

    @classmethod
    def of(cls, ranges: Sequence[BatchRange]) -> RangeSet:
        """Lay out ranges of which no two overlap within a series."""
        symbols = sorted({each.symbol for each in ranges})
        timeframes = sorted({each.timeframe for each in ranges})
        sources = sorted({each.source for each in ranges})
        numbers = {
            (symbol, timeframe, source): (i * len(timeframes) + j) * len(sources) + k
            for i, symbol in enumerate(symbols)
            for j, timeframe in enumerate(timeframes)
            for k, source in enumerate(sources)
        }
        bases = [numbers[each[:3]] << _PLACE_BITS for each in ranges]
        places = [base + to_ms(each.start_ts) for base, each in zip(bases, ranges, strict=True)]
        ends = [base + to_ms(each.end_ts) for base, each in zip(bases, ranges, strict=True)]
        ordered = sorted(zip(places, ends, strict=True))
        return cls(
            places,
            {
                "symbols": symbols,
                "timeframes": timeframes,
                "sources": sources,
                "first": min(each.start_ts for each in ranges),
                "last": max(each.end_ts for each in ranges),
                "months": sorted({month for each in ranges for month in _months(each)}),
                "starts": [start for start, _ in ordered],
                "ends": [end for _, end in ordered],
            },
        )


def disjoint(ranges: Sequence[BatchRange]) -> bool:
    """Tell whether no two ranges of one series share a moment."""
    ordered = sorted(ranges)
    return all(a[:3] != b[:3] or a.end_ts < b.start_ts for a, b in pairwise(ordered))


def _months(one: BatchRange) -> list[tuple[str, str, int]]:
    first = one.start_ts.year * 12 + one.start_ts.month - 1
    last = one.end_ts.year * 12 + one.end_ts.month - 1
    return [(one.symbol, one.timeframe, month // 12 * 100 + month % 12 + 1) for month in range(first, last + 1)]

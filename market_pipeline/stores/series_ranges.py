"""Ranges of series, and how many of them are laid into the parameters of one query."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

from market_pipeline.market.timeframes import to_ms

# Epoch milliseconds below 2^44 reach the year 2527; above lies room for a million series.
_PLACE_BITS = 44
# Ranges of one symbol this near to each other are read in one sweep: partitions are months.
_NEAR = timedelta(days=62)
# Every hull is tested on every row read; with more, one wide hull is the cheaper condition.
_MOST_HULLS = 8
_HULL = re.compile(r"/\* hull \*/(.*?)/\* hull \*/", re.DOTALL)


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
    """Ranges as the parameters of series_digests.sql and its companions.

    `place` of a ts is its epoch ms plus its series' number in the upper bits; `places` are those of the ranges' first
    ts, in the order given.
    """

    places: list[int]
    parameters: dict[str, Any]
    hulls: int

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
        parameters: dict[str, Any] = {
            "symbols": symbols,
            "timeframes": timeframes,
            "sources": sources,
            "starts": [start for start, _ in ordered],
            "ends": [end for _, end in ordered],
        }
        groups = list(_sweeps(ranges))
        if len(groups) > _MOST_HULLS:
            groups = [list(ranges)]
        for number, group in enumerate(groups):
            parameters[f"symbols_{number}"] = sorted({each.symbol for each in group})
            parameters[f"timeframes_{number}"] = sorted({each.timeframe for each in group})
            parameters[f"first_{number}"] = min(each.start_ts for each in group)
            parameters[f"last_{number}"] = max(each.end_ts for each in group)
        return cls(places, parameters, len(groups))

    def fill(self, statement: str) -> str:
        """Repeat the part of the statement between its hull marks once for each hull."""
        return _HULL.sub(
            lambda found: " OR ".join(found[1].replace("_0:", f"_{number}:") for number in range(self.hulls)), statement
        )


def disjoint(ranges: Sequence[BatchRange]) -> bool:
    """Tell whether no two ranges of one series share a moment."""
    ordered = sorted(ranges)
    return all(a[:3] != b[:3] or a.end_ts < b.start_ts for a, b in pairwise(ordered))


def _sweeps(ranges: Sequence[BatchRange]) -> Iterator[list[BatchRange]]:
    """Group the ranges of each symbol that lie near each other in time."""
    group: list[BatchRange] = []
    last: datetime | None = None
    for each in sorted(ranges, key=lambda one: (one.symbol, one.start_ts)):
        if group and (each.symbol != group[0].symbol or last is None or each.start_ts - last > _NEAR):
            yield group
            group, last = [], None
        group.append(each)
        last = each.end_ts if last is None else max(last, each.end_ts)
    if group:
        yield group

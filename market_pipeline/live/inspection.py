"""What is wrong with batches that nobody else will verify, before their bytes are moved.

A run verifies by value what it published. A batch without a run (of live bars, of a foreign producer, a replayed one)
has nobody to do so: its digest and its rows are looked at here, many batches at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from market_pipeline.bus.envelope import BatchHeaders, decode_all
from market_pipeline.errors import UnreadableBatch
from market_pipeline.market.bars import split_valid


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one batch: an error of the whole, or malformed rows (`bad`, with `reason`) beside good."""

    good: pl.DataFrame
    bad: pl.DataFrame
    error: UnreadableBatch | None = None


def inspect(batches: Sequence[tuple[bytes, BatchHeaders]]) -> list[Finding | None]:
    """Decode the batches and judge their rows; None for a batch with which nothing is wrong. CPU-bound, thread-safe.

    The batches must not overlap: a bar that comes twice is a malformed row.
    """
    findings: list[Finding | None] = [None] * len(batches)
    frame, place, errors = decode_all(batches)
    for at, error in errors.items():
        findings[at] = Finding(pl.DataFrame(), pl.DataFrame(), error)
    good, bad = split_valid(frame.with_columns(place=place))
    for at in bad["place"].unique().to_list():
        mine = pl.col("place") == at
        findings[at] = Finding(good.filter(mine).drop("place"), bad.filter(mine).drop("place"))
    return findings

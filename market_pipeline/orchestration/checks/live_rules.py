"""Live against vendor: the minutes that live time made, against what the vendor later says of them."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from market_pipeline.market.reconciliation import Counts
from market_pipeline.orchestration.checks.verdict import Verdict

NO_LIVE = "there is no live minute in what was looked at: nothing to compare"


def judge_live(counts: Mapping[str, Counts], table: pl.DataFrame, values: int, winner: str) -> Verdict:
    """Judge live minutes against the vendor's.

    `counts` by symbol key; `table` the largest differences (DIFFERENCE_SCHEMA), `values` how many there are in all;
    `winner` the source that wins where both have a complete minute. A minute that only one of them has is counted and
    no more: what live time lost is the gap check's, and what the vendor has not is an answer that may still come.
    """
    total = Counts()
    for each in counts.values():
        total.add(each)
    numbers: dict[str, int | float | str] = {
        "minutes compared": total.compared,
        "minutes that differ": total.differ,
        "minutes only live": total.only_live,
        "minutes only vendor": total.only_vendor,
        "minutes incomplete live": total.live_incomplete,
        "largest difference": total.largest,
        "wins": winner,
    }
    if total.live + total.unsettled == 0:
        return Verdict("pass", NO_LIVE, numbers)
    if total.differ:
        worst = table.row(0, named=True)
        sentence = (
            f"{total.differ:,} of {total.compared:,} live minutes differ from the vendor's beyond tolerance, most "
            f"of all {worst['symbol']} at {worst['ts']:%Y-%m-%d %H:%M} UTC: {worst['column']} {worst['live']:.10g}, "
            f"the vendor's {worst['vendor']:.10g} ({worst['difference']:.4%} off). By the precedence {winner} wins"
        )
        return Verdict("warn", sentence, numbers, table, "values that differ", values)
    if total.compared == 0:
        sentence = (
            f"of {total.live + total.unsettled:,} live minutes none could be compared: launch reconcile_live, which "
            "asks for the vendor's"
        )
        return Verdict("pass", sentence, numbers)
    return Verdict(
        "pass",
        f"{total.compared:,} live minutes agree with the vendor's; besides {total.only_live:,} only live has, "
        f"{total.only_vendor:,} only the vendor, {total.live_incomplete:,} are incomplete live",
        numbers,
    )

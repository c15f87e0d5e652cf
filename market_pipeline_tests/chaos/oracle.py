"""The oracle: bars and ticks end like those of a clean run, nothing twice, losses are named, poison is listed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import polars as pl

from market_pipeline.market.timeframes import DERIVED, TIMEFRAMES
from market_pipeline.simulator.truth import minutes as truth_minutes
from market_pipeline.simulator.truth import ticks as truth_ticks
from market_pipeline.stores.clickhouse import connect
from market_pipeline.stores.ticks import TickReader
from market_pipeline_tests.chaos.intervals import Interval, length, within, without
from market_pipeline_tests.chaos.world import SYMBOLS, ChaosWorld
from market_pipeline_tests.integration.world import assert_bars_equal, fold_independently

_NEAR = timedelta(minutes=10)
# On the wall, before and after a fault: silence is noticed late and lost from its beginning; processes start, leases
# are taken and streams opened again, on a machine that is busy; and a clock that jumps dates losses by so much wrongly.
_MARGIN = timedelta(seconds=20)
# Shares of a run. Measured on a busy machine: 29 to 65 % in all (the shorter, the more), since the vendor's time passes
# thirty times as fast as processes start; none of it beside faults.
_MOST, _MOST_UNASKED = 0.9, 0.25
_VALUES = ["ts", "bid", "ask", "price", "size"]


@dataclass
class Verdict:
    """What was found: numbers to print, and sentences on what is wrong."""

    numbers: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def wait_until_whole(world: ChaosWorld, start: datetime, end: datetime, seconds: float) -> Verdict:
    """Judge again and again until nothing is wrong, or the time is over: repair takes a while."""
    until = time.monotonic() + seconds
    while True:
        world.keep_live()
        try:
            verdict = judge_bars(world, start, end)
            judge_letters(world, verdict)
        except Exception as error:  # a server that is on its way back
            verdict = Verdict(wrong=[f"cannot be judged: {error}"])
        if not verdict.wrong or time.monotonic() > until:
            break
        time.sleep(1.0)
    ticks = judge_ticks(world, start, end)
    verdict.numbers |= ticks.numbers
    verdict.wrong += ticks.wrong
    return verdict


def judge_bars(world: ChaosWorld, start: datetime, end: datetime) -> Verdict:
    """Compare the winning bars of [start, end) (whole minutes) with the truth's, in every timeframe."""
    verdict = Verdict()
    client = connect(world.settings.clickhouse)
    try:
        for key, ticker in SYMBOLS.items():
            truth = truth_minutes(ticker, start, end)
            stored = _bars(client.frame(_WINNERS, {"symbol": key, "timeframe": "1m", "start": start, "end": end}))
            verdict.numbers[f"{key} minutes"] = stored.height
            incomplete = int((~stored["complete"]).sum())
            if incomplete:
                verdict.wrong.append(f"{key}: {incomplete} minutes are not complete: {_some(stored, complete=False)}")
            _compare(verdict, f"{key} 1m", stored, truth)
            for code in DERIVED:
                fold = fold_independently(truth, code)
                closed = (pl.col("ts") >= start) & (pl.col("ts") + TIMEFRAMES[code].length <= end)
                fold = fold.filter(closed)
                if fold.height:
                    parameters = {"symbol": key, "timeframe": code, "start": start, "end": end}
                    _compare(verdict, f"{key} {code}", _bars(client.frame(_WINNERS, parameters)).filter(closed), fold)
            doubled = client.rows(_DOUBLED, {"symbol": key})
            if doubled != [(0,)]:
                verdict.wrong.append(f"{key}: {doubled[0][0]} bars win twice")
    finally:
        client.close()
    return verdict


def judge_letters(world: ChaosWorld, verdict: Verdict) -> None:
    """Find all poison, and nothing else, among the dead letters: an outage never makes one."""
    letters = world.dead_letters()
    verdict.numbers["dead letters"] = len(letters)
    verdict.numbers["messages of poison"] = len(world.poison)
    if others := {name: reason for name, reason in letters.items() if not name.startswith("poison-")}:
        verdict.wrong.append(f"{len(others)} dead letters are no poison: {list(others.items())[:3]}")
    ends = {name: (reason, letters.get(name, "none")) for name, reason in world.poison.items()}
    if astray := {name: end for name, end in ends.items() if end[0] != end[1]}:
        verdict.wrong.append(
            f"{len(astray)} messages of poison have another end (sent, found): {list(astray.items())[:3]}"
        )


def judge_ticks(world: ChaosWorld, start: datetime, end: datetime) -> Verdict:
    """Compare the ticks stored with the vendor's: each once, or inside a recorded loss; none that never was."""
    verdict = Verdict()
    with TickReader(world.settings.postgres) as reader:
        for key, ticker in SYMBOLS.items():
            # The truth has quotes of a forex pair and trades of everything else; the stream makes quotes of trades too.
            kind = "quote" if ticker.startswith("C:") else "trade"
            kept = reader.ticks(key, start, end).filter(pl.col("kind") == kind).select(_VALUES)
            if kept.is_empty():
                verdict.wrong.append(f"{key}: no tick is stored")
                continue
            had = truth_ticks(ticker, start, end).select(_VALUES)
            losses = reader.losses(key, start - timedelta(days=1), end + timedelta(days=1))
            covers = [(row["start"], row["end"]) for row in losses.to_dicts()] + world_losses(world, key)
            counted = (
                had.group_by(_VALUES)
                .agg(had=pl.len())
                .join(
                    kept.group_by(_VALUES).agg(kept=pl.len()),
                    on=_VALUES,
                    how="full",
                    coalesce=True,
                    nulls_equal=True,
                )
                .with_columns(pl.col("had", "kept").fill_null(0))
            )
            extra = counted.filter(pl.col("kept") > pl.col("had"))
            if extra.height:
                verdict.wrong.append(
                    f"{key}: {extra.height} ticks are there more often than they were sent: {extra[0]}"
                )
            # What came while it went live may be there or not; from then on each is, or a record says why not.
            missing = counted.filter(pl.col("kept") < pl.col("had"), pl.col("ts") >= world.live_since)
            unexplained = [ts for ts in missing["ts"] if not any(a <= ts <= b for a, b in covers)]
            if unexplained:
                first, last = min(unexplained), max(unexplained)
                near = [(a, b) for a, b in covers if abs(b - first) < _NEAR or abs(a - last) < _NEAR]
                verdict.wrong.append(
                    f"{key}: {len(unexplained)} ticks of {first} to {last} are lost and no record says so; "
                    f"recorded near them: {sorted(near)}"
                )
            verdict.numbers[f"{key} ticks"] = kept.height
            verdict.numbers[f"{key} ticks in recorded losses"] = missing.height
            judge_losses(world, key, covers, end, verdict)
    return verdict


def judge_losses(world: ChaosWorld, key: str, covers: list[Interval], end: datetime, verdict: Verdict) -> None:
    """Bound what the records excuse: little of it where nothing went on that loses ticks, and not all of the run."""
    lost = within(covers, world.live_since, end)
    faults = [(a - _MARGIN * world.speed, b + _MARGIN * world.speed) for a, b in world.losing]
    run = end - world.live_since
    for what, found, most in (
        ("time in recorded losses", lost, _MOST),
        ("time in losses beside faults", without(lost, faults), _MOST_UNASKED),
    ):
        share = length(found) / run
        verdict.numbers[f"{key} % of {what}"] = round(100 * share)
        if share > most:
            verdict.wrong.append(f"{key}: {share:.0%} of {what}, more than {most:.0%}: {found[:3]}")


def world_losses(world: ChaosWorld, key: str) -> list[tuple[datetime, datetime]]:
    """Return the intervals that the gap ledger and the loss bucket name for a symbol."""
    client = connect(world.settings.clickhouse)
    try:
        return [(row[0], row[1]) for row in client.rows(_LOST, {"symbol": key})]
    finally:
        client.close()


def _compare(verdict: Verdict, what: str, stored: pl.DataFrame, truth: pl.DataFrame) -> None:
    try:
        assert_bars_equal(stored, truth, what)
    except AssertionError as error:
        absent = truth.join(stored, on="ts", how="anti")["ts"].head(3).to_list()
        more = stored.join(truth, on="ts", how="anti")["ts"].head(3).to_list()
        verdict.wrong.append(f"{str(error).splitlines()[0]}; absent {absent}, too many {more}")


def _bars(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("ts").cast(pl.Datetime("ms", "UTC")))


def _some(frame: pl.DataFrame, *, complete: bool) -> list[tuple[datetime, str]]:
    return frame.filter(pl.col("complete") == complete).select("ts", "source").head(3).rows()


_WINNERS = """
SELECT * FROM bars_final WHERE symbol = {symbol:String} AND timeframe = {timeframe:String}
AND ts >= {start:DateTime64(3, 'UTC')} AND ts < {end:DateTime64(3, 'UTC')} ORDER BY ts
"""
_DOUBLED = """
SELECT toUInt32(count()) FROM
(SELECT 1 FROM bars_final WHERE symbol = {symbol:String} GROUP BY timeframe, ts HAVING count() > 1)
"""
_LOST = "SELECT start_ts, end_ts FROM gaps FINAL WHERE symbol = {symbol:String} AND cause = 'lost'"

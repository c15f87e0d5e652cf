from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.errors import InvalidBars, UnknownTimeframe
from market_pipeline.market.aggregation import derive, fold
from market_pipeline.market.bars import BAR_SCHEMA, MINUTE_SOURCES, empty_bars, validate_bars
from market_pipeline.market.sessions import calendar
from market_pipeline.market.timeframes import DERIVED, floor, timeframe
from market_pipeline_tests.market.frames import START, minute_bars, times, utc

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pandas, by exchange_calendars

MINUTE = timedelta(minutes=1)
SUNDAY = START - timedelta(days=1)  # the week of the made-up bars
LATER = utc(2030, 1, 1)
WEAKEST_FIRST = MINUTE_SOURCES
VALUES = ("open", "high", "low", "close", "volume", "trades", "complete", "is_deleted", "origin", "revision")


def revisions_of(bars: pl.DataFrame) -> pl.DataFrame:
    return bars.group_by(pl.col("ts").dt.truncate("5m")).agg(pl.col("revision").max())


def derived(bars: pl.DataFrame, name: str = "crypto", **options: Any) -> dict[str, pl.DataFrame]:
    defaults: dict[str, Any] = {
        "window_revisions": revisions_of(bars),
        "timeframes": DERIVED,
        "now": LATER,
        "symbol": "EURUSD",
        "weakest_first": WEAKEST_FIRST,
    }
    return derive(bars, calendar=calendar(name), **(defaults | options))


def by_hand(
    minutes: pl.DataFrame, revisions: dict[datetime, int], code: str, name: str, now: datetime, week_start: Any
) -> list[dict[str, Any]]:
    """Derive one timeframe minute by minute, in plain Python, straight from the definition."""
    tf, rows = timeframe(code), []
    for opened in sorted({floor(ts, tf, week_start) for ts in revisions}):
        if opened + tf.length > now:
            continue
        inside = [row for row in minutes.iter_rows(named=True) if opened <= row["ts"] < opened + tf.length]
        expected = set(calendar(name).expected_minutes(opened, opened + tf.length))
        proven = {row["ts"] for row in inside if row["complete"]}
        rows.append(
            {
                "ts": opened,
                "open": inside[0]["open"] if inside else 0.0,
                "high": max((row["high"] for row in inside), default=0.0),
                "low": min((row["low"] for row in inside), default=0.0),
                "close": inside[-1]["close"] if inside else 0.0,
                "volume": float(sum(Decimal(str(row["volume"])) for row in inside)),
                "trades": sum(row["trades"] for row in inside),
                "complete": bool(inside) and (expected <= proven if expected else len(proven) == len(inside)),
                "is_deleted": int(not inside),
                "origin": min((row["source"] for row in inside), key=WEAKEST_FIRST.index, default=""),
                "revision": max(value for ts, value in revisions.items() if opened <= ts < opened + tf.length),
            }
        )
    return rows


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a stretch of minutes with holes, incomplete bars, several sources and withdrawn windows."""
    name = draw(st.sampled_from(["forex", "crypto", "XNYS"]))
    # over the opens and closes of the sessions, the night between, the end of the week
    first = draw(st.sampled_from([SUNDAY, START + timedelta(hours=14), START + timedelta(days=4, hours=20)]))
    first += draw(st.integers(0, 600)) * MINUTE
    span = draw(st.integers(1, 400))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    there = np.flatnonzero(rng.random(span) < draw(st.sampled_from([1.0, 0.99, 0.5, 0.0])))
    bars = minute_bars(
        first,
        there,
        seed=int(rng.integers(2**31)),
        complete=(rng.random(len(there)) < draw(st.sampled_from([1.0, 0.98]))).tolist(),
        source=rng.choice(WEAKEST_FIRST, len(there)).tolist() if draw(st.booleans()) else WEAKEST_FIRST[2],
        revision=rng.integers(1, 1000, len(there)).tolist(),
    )
    losers = times(first, np.flatnonzero(rng.random(span) < 0.3))
    stored = pl.concat(
        [revisions_of(bars), pl.DataFrame({"ts": losers, "revision": pl.Series([500] * len(losers), dtype=pl.UInt64)})]
    )
    return {
        "bars": bars,
        "stored": stored.group_by(pl.col("ts").dt.truncate("5m")).agg(pl.col("revision").max()),
        "name": name,
        "now": first + draw(st.integers(0, 20_000)) * MINUTE,
        "week_start": draw(st.sampled_from(["sunday", "monday"])),
    }


@settings(max_examples=50)
@given(case=cases())
def test_derive_is_its_definition(case: dict[str, Any]) -> None:
    made = derived(
        case["bars"], case["name"], window_revisions=case["stored"], now=case["now"], week_start=case["week_start"]
    )
    assert list(made) == list(DERIVED)
    revisions = dict(case["stored"].rows())
    for code, frame in made.items():
        wanted = by_hand(case["bars"], revisions, code, case["name"], case["now"], case["week_start"])
        assert frame.select("ts", *VALUES).to_dicts() == [
            {name: row[name] for name in ("ts", *VALUES)} for row in wanted
        ]
        assert frame["timeframe"].unique().to_list() == ([code] if wanted else [])
        assert frame["source"].unique().to_list() == (["derived"] if wanted else [])
    validate_bars(pl.concat(made.values()), where="derived", week_start=case["week_start"])


@pytest.mark.parametrize("code", DERIVED)
def test_each_timeframe_alone_comes_out_as_with_all(code: str) -> None:
    bars = minute_bars(SUNDAY, [n for n in range(7 * 1440) if n % 7], no_vwap=[5000])
    alone = derived(bars, timeframes=[code])
    assert list(alone) == [code]
    assert alone[code].equals(derived(bars)[code])
    assert dict(alone[code].schema) == dict(BAR_SCHEMA)


def test_derive_folds_as_fold_folds() -> None:
    bars = minute_bars(SUNDAY, [n for n in range(7 * 1440) if n % 11], no_vwap=[4000])
    made, folded = derived(bars), bars
    for code in ("5m", "15m", "30m", "1h", "1d", "1w"):
        folded = fold(folded, code)
        columns = ["ts", "open", "high", "low", "close", "volume", "vwap", "trades"]
        assert made[code].select(columns).equals(folded.select(columns))
    assert made["1w"]["vwap"].to_list() == [None]
    assert made["5m"]["vwap"].null_count() == 1


@pytest.mark.parametrize(
    ("day", "weeks"),
    [
        (utc(2024, 3, 3), "summer time begins in New York on the 10th"),
        (utc(2024, 10, 27), "winter time on 3 November"),
        (utc(2023, 12, 24), "the year ends"),
    ],
)
def test_a_full_forex_fortnight_is_complete_at_every_level(day: datetime, weeks: str) -> None:
    forex = calendar("forex")
    ts = forex.expected_minutes(day, day + timedelta(days=14))
    offsets = ((ts - day).dt.total_minutes()).to_list()
    made = derived(minute_bars(day, offsets), "forex")
    for code, frame in made.items():
        assert frame["complete"].all(), (code, weeks)
    assert made["1w"].height == 2
    # one minute less and exactly the windows that hold it are incomplete
    lost = ts[7777]
    holed = derived(minute_bars(day, [n for n in offsets if n != offsets[7777]]), "forex")
    for code, frame in holed.items():
        assert frame.filter(~pl.col("complete"))["ts"].to_list() == [floor(lost, code)]


def test_a_minute_outside_the_calendar_does_not_stand_in_for_a_lost_one() -> None:
    day = utc(2024, 1, 8)
    session = range(14 * 60 + 30, 21 * 60)
    pre_market = range(14 * 60, 14 * 60 + 30)
    made = derived(minute_bars(day, [*pre_market, *session]), "XNYS")
    assert made["1d"]["complete"].to_list() == [True]
    assert made["30m"].height == 14
    holed = derived(minute_bars(day, [*pre_market, *session[1:]]), "XNYS")
    assert holed["1d"]["complete"].to_list() == [False]
    assert holed["1h"]["complete"].to_list() == [False, *[True] * 6]


def test_bars_outside_the_calendar_are_complete_if_their_minutes_are() -> None:
    saturday = utc(2024, 1, 13, 12)
    made = derived(minute_bars(saturday, range(10), complete=[True] * 7 + [False] + [True] * 2), "forex")
    assert made["5m"]["complete"].to_list() == [True, False]
    assert made["1d"]["complete"].to_list() == [False]
    assert made["1w"]["complete"].to_list() == [False]  # this one lacks what the calendar expects


@pytest.mark.parametrize(
    ("now", "closed"),
    [
        (SUNDAY + timedelta(minutes=5) - timedelta(milliseconds=1), []),
        (SUNDAY + timedelta(minutes=5), ["5m"]),
        (SUNDAY + timedelta(hours=1), ["5m", "15m", "30m", "1h"]),
        (SUNDAY + timedelta(days=1), ["5m", "15m", "30m", "1h", "4h", "1d"]),
        (SUNDAY + timedelta(days=7) - MINUTE, ["5m", "15m", "30m", "1h", "4h", "1d"]),
        (SUNDAY + timedelta(days=7), list(DERIVED)),
    ],
)
def test_only_closed_windows_are_given(now: datetime, closed: list[str]) -> None:
    made = derived(minute_bars(SUNDAY, range(5)), now=now)
    assert [code for code, frame in made.items() if frame.height] == closed


def test_the_weakest_parent_and_the_highest_revision() -> None:
    bars = minute_bars(
        START,
        range(10),
        source=[WEAKEST_FIRST[3]] * 6 + [WEAKEST_FIRST[1]] + [WEAKEST_FIRST[3]] * 3,
        revision=[5, 9, 1, 1, 1, 2, 2, 2, 2, 2],
    )
    stored = pl.DataFrame(
        {"ts": times(START, [0, 5]), "revision": [7, 40]}, schema_overrides={"revision": pl.UInt64}
    )  # 9 is newer than what the revisions, read before, knew; 40 is a loser's
    made = derived(bars, window_revisions=stored)
    assert made["5m"]["origin"].to_list() == [WEAKEST_FIRST[3], WEAKEST_FIRST[1]]
    assert made["5m"]["revision"].to_list() == [9, 40]
    assert made["1h"].select("origin", "revision").rows() == [(WEAKEST_FIRST[1], 40)]


def test_withdrawn_minutes_leave_a_tombstone() -> None:
    stored = pl.DataFrame({"ts": times(START, [0, 5]), "revision": [7, 8]}, schema_overrides={"revision": pl.UInt64})
    made = derived(minute_bars(START, range(5)), window_revisions=stored)
    gone = made["5m"].row(1, named=True)
    assert gone["is_deleted"] == 1
    assert gone["revision"] == 8
    assert (gone["open"], gone["high"], gone["low"], gone["close"], gone["volume"]) == (0.0,) * 5
    assert (gone["vwap"], gone["trades"], gone["complete"], gone["origin"]) == (None, 0, False, "")
    assert made["15m"]["is_deleted"].to_list() == [0]
    # and where nothing is left at all, there is still a symbol and a tombstone for every level
    none_left = derived(empty_bars(), window_revisions=stored)
    for frame in none_left.values():
        assert frame["is_deleted"].unique().to_list() == [1]
        assert frame["symbol"].unique().to_list() == ["EURUSD"]
        validate_bars(frame, where="tombstones")


def test_a_deleted_minute_is_no_minute() -> None:
    bars = minute_bars(START, range(5)).with_columns(is_deleted=pl.Series([0, 0, 0, 0, 1], dtype=pl.UInt8))
    made = derived(bars)["5m"]
    assert made.equals(derived(bars.head(4))["5m"])
    assert made["complete"].to_list() == [False]


def test_nothing_stored_derives_nothing() -> None:
    made = derived(empty_bars())
    assert all(frame.is_empty() and dict(frame.schema) == dict(BAR_SCHEMA) for frame in made.values())
    assert derived(minute_bars(), timeframes=[]) == {}


@settings(max_examples=30)
@given(offsets=st.lists(st.integers(0, 20_000), min_size=1, max_size=200, unique=True).map(sorted), week=st.booleans())
def test_weeks_derived_apart_are_the_weeks_derived_together(offsets: list[int], week: bool) -> None:
    bars = minute_bars(SUNDAY, offsets)
    together = derived(bars, "forex", week_start="sunday")
    cut = SUNDAY + timedelta(days=7)
    parts = [part for part in (bars.filter(pl.col("ts") < cut), bars.filter(pl.col("ts") >= cut)) if part.height]
    apart = [derived(part, "forex") for part in parts]
    for code in DERIVED:
        assert pl.concat([part[code] for part in apart]).equals(together[code])


@pytest.mark.parametrize(
    ("bars", "says"),
    [
        (minute_bars(symbol="GBPUSD"), "symbol: is 'GBPUSD', not 'EURUSD'"),
        (pl.concat([minute_bars(), minute_bars(START + timedelta(hours=1), symbol="GBPUSD")]), "symbol: is 'GBPUSD'"),
        (minute_bars().with_columns(timeframe=pl.lit("1h")), "timeframe: is '1h', not '1m'"),
        (minute_bars().reverse(), "ts: .*does not rise"),
        (pl.concat([minute_bars().head(1)] * 2), "ts: .*does not rise"),
        (minute_bars().with_columns(pl.col("ts") + timedelta(seconds=1)), "opens no minute"),
        (minute_bars().with_columns(source=pl.lit("derived")), "source: 'derived' is not among"),
    ],
)
def test_what_are_not_the_minutes_of_one_symbol_is_refused(bars: pl.DataFrame, says: str) -> None:
    with pytest.raises(InvalidBars, match=says):
        derived(bars)


def test_what_is_not_derived_is_refused() -> None:
    for code in ("1m", "1s", "2h"):
        with pytest.raises(UnknownTimeframe, match=code):
            derived(minute_bars(), timeframes=[code])
    with pytest.raises(InvalidBars, match="opens no 5m window"):
        derived(minute_bars(), window_revisions=minute_bars().select("ts", "revision"))

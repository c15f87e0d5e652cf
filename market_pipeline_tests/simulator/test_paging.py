"""Pages: joined they are the one big answer, and the limit counts base aggregates."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.simulator import truth
from market_pipeline.simulator.aggregate import fold, window_starts
from market_pipeline.simulator.bars import Bars
from market_pipeline.simulator.paging import AggregatesQuery, BadParameter, Page, parse, path_of, read_page
from market_pipeline.simulator.state import VendorState
from market_pipeline.simulator.tickers import market_of

STATE = VendorState()


def query(ticker: str, span: str, start: object, end: object, **options: object) -> AggregatesQuery:
    multiplier, timespan = span.split()
    return parse(ticker, multiplier, timespan, str(start), str(end), {n: str(v) for n, v in options.items()})


def pages(first: AggregatesQuery, state: VendorState = STATE) -> list[Page]:
    """Follow a query as a client does: through the path and the cursor of each next page."""
    read: list[Page] = []
    following: AggregatesQuery | None = first
    while following is not None:
        read.append(read_page(state, following))
        assert len(read) < 2_000
        if read[-1].following is None:
            break
        path, _, cursor = path_of(read[-1].following).partition("?cursor=")
        ticker, _, multiplier, timespan, start, end = path.removeprefix("/v2/aggs/ticker/").split("/")
        following = parse(ticker, multiplier, timespan, start, end, {"cursor": cursor})
    return read


@settings(max_examples=60, deadline=None)
@given(
    ticker=st.sampled_from(["C:GBPUSD", "X:SOLUSD", "AAPL", "C:EURUSD"]),
    span=st.sampled_from(["1 minute", "5 minute", "7 minute", "1 hour", "4 hour", "30 second"]),
    start=st.dates(date(2014, 5, 1), date(2014, 5, 20)),
    days=st.integers(0, 3),
    limit=st.sampled_from([37, 100, 999, 5_000]),
    sort=st.sampled_from(["asc", "desc"]),
)
def test_pages_joined_equal_one_big_page(ticker: str, span: str, start: date, days: int, limit: int, sort: str) -> None:
    if span == "30 second":
        days, limit = 0, max(limit, 2_000)
    asked = query(ticker, span, start, start + timedelta(days=days), limit=limit, sort=sort)
    read = pages(asked)
    whole = query(ticker, span, start, start + timedelta(days=days), limit=50_000, sort="asc")
    expected = Bars.concat([page.bars for page in pages(whole)])
    joined = Bars.concat([page.bars for page in (read if sort == "asc" else read[::-1])])
    if sort == "desc":
        joined = joined.take(joined.ts.argsort())
    assert joined.to_frame().equals(expected.to_frame())
    for page in read[:-1]:
        assert len(page.bars)
        assert page.base_count == limit
        steps = set((page.bars.ts[1:] > page.bars.ts[:-1]).tolist())
        assert steps <= {sort == "asc"}


@settings(max_examples=30, deadline=None)
@given(
    ticker=st.sampled_from(["C:GBPUSD", "AAPL"]),
    span=st.sampled_from(["1 day", "3 day", "1 week", "1 month", "1 quarter"]),
    start=st.dates(date(2013, 1, 1), date(2014, 1, 1)),
    limit=st.sampled_from([1, 4, 30]),
    sort=st.sampled_from(["asc", "desc"]),
)
def test_pages_of_days_and_longer_count_days(ticker: str, span: str, start: date, limit: int, sort: str) -> None:
    end = start + timedelta(days=60)
    read = pages(query(ticker, span, start, end, limit=limit, sort=sort))
    whole = read_page(STATE, query(ticker, span, start, end, limit=50_000, sort=sort))
    assert Bars.concat([page.bars for page in read]).to_frame().equals(whole.bars.to_frame())
    assert whole.following is None
    assert whole.base_count <= 160


def test_the_limit_counts_minutes_and_an_unfinished_hour_waits() -> None:
    # The vendor's own example: 100 base minutes of two hours give one hour, the second being partial.
    asked = query("X:ETHUSD", "1 hour", "2024-03-05", "2024-03-05", limit=100)
    page = read_page(STATE, asked)
    assert (len(page.bars), page.base_count) == (1, 100)
    assert page.following is not None
    assert page.following.start == truth.to_ms(datetime(2024, 3, 5, 1, tzinfo=UTC))
    assert len(pages(asked)) == 24


def test_a_window_larger_than_the_limit_is_whole() -> None:
    read = pages(query("X:ETHUSD", "1 hour", "2024-03-05", "2024-03-05", limit=10))
    assert [len(page.bars) for page in read] == [1] * 24
    assert sum(int(page.bars.trades[0]) for page in read) == int(
        truth.minute_bars("X:ETHUSD", read[0].bars.ts[0], read[-1].bars.ts[0] + 3_600_000).trades.sum()
    )


def test_a_range_is_widened_to_whole_windows() -> None:
    start, end = datetime(2024, 3, 5, 10, 17, 3, tzinfo=UTC), datetime(2024, 3, 5, 12, 1, tzinfo=UTC)
    page = read_page(STATE, query("C:GBPUSD", "1 hour", truth.to_ms(start), truth.to_ms(end)))
    assert [datetime.fromtimestamp(ts / 1000, UTC).hour for ts in page.bars.ts] == [10, 11, 12]
    minutes = truth.minute_bars("C:GBPUSD", int(page.bars.ts[0]), int(page.bars.ts[-1]) + 3_600_000)
    assert page.bars.to_frame().equals(fold(minutes, 1, "hour", "forex").to_frame())


@pytest.mark.parametrize(
    ("ticker", "first", "last"),
    [
        ("X:ETHUSD", datetime(2024, 7, 2, tzinfo=UTC), datetime(2024, 7, 3, 23, 59, tzinfo=UTC)),
        ("AAPL", datetime(2024, 7, 2, 13, 30, tzinfo=UTC), datetime(2024, 7, 3, 16, 59, tzinfo=UTC)),
    ],
)
def test_dates_include_the_whole_last_day(ticker: str, first: datetime, last: datetime) -> None:
    page = read_page(STATE, query(ticker, "1 minute", "2024-07-02", "2024-07-03"))
    assert page.bars.ts[0] == truth.to_ms(first)
    assert page.bars.ts[-1] == truth.to_ms(last)


def test_a_day_bar_of_a_stock_starts_at_new_yorks_midnight() -> None:
    page = read_page(STATE, query("AAPL", "1 day", "2024-07-02", "2024-07-03"))
    assert [datetime.fromtimestamp(ts / 1000, UTC) for ts in page.bars.ts] == [
        datetime(2024, 7, 2, 4, tzinfo=UTC),
        datetime(2024, 7, 3, 4, tzinfo=UTC),
    ]


def test_nothing_lies_in_the_future() -> None:
    state = VendorState()
    state.set_now(truth.to_ms(datetime(2024, 3, 5, 12, 30, 30, tzinfo=UTC)))
    page = read_page(state, query("X:ETHUSD", "1 minute", "2024-03-05", "2099-01-01"))
    assert page.following is None
    assert len(page.bars) == 12 * 60 + 31
    hours = read_page(state, query("X:ETHUSD", "1 hour", "2024-03-05", "2099-01-01"))
    assert len(hours.bars) == 13
    assert hours.bars.volume[-1] == page.bars.volume[-31:].sum().round(8)
    assert len(read_page(state, query("X:ETHUSD", "1 minute", "2050-01-01", "2099-01-01")).bars) == 0


def test_limits_beyond_the_largest_are_the_largest() -> None:
    assert query("AAPL", "1 day", "2024-01-01", "2024-01-02", limit=10**9).limit == 50_000


def test_a_range_without_bounds_costs_no_more_than_its_page() -> None:
    for ticker in ("C:GBPUSD", "X:ETHUSD", "AAPL"):
        for sort in ("asc", "desc"):
            page = read_page(STATE, query(ticker, "1 minute", "0001-01-01", "9998-12-31", limit=10, sort=sort))
            assert len(page.bars) == 10
            assert page.bars.ts.min() >= 0
            assert page.bars.ts.max() <= STATE.now_ms()


def test_large_volumes_stay_whole() -> None:
    page = read_page(STATE, query("AAPL", "1 year", "2019-01-01", "2023-12-31", limit=50_000))
    minutes = truth.minute_bars("AAPL", int(page.bars.ts[0]), int(page.bars.ts[1]))
    assert page.bars.volume[0] == minutes.volume.astype(int).sum()


def test_overlays_reach_every_timespan() -> None:
    state = VendorState()
    minute = truth.to_ms(datetime(2024, 3, 5, 10, 3, tzinfo=UTC))
    state.restate("C:GBPUSD", minute, {"high": 9.0})
    for span in ("1 minute", "5 minute", "1 hour", "1 day", "1 week", "1 month"):
        page = read_page(state, query("C:GBPUSD", span, minute, minute))
        assert page.bars.high.max() == 9.0
        starts = window_starts(page.bars.ts, 1, "minute", market_of("C:GBPUSD") or "forex")
        assert starts.tolist() == page.bars.ts.tolist()


@pytest.mark.parametrize(
    ("span", "start", "end", "options"),
    [
        ("1 fortnight", "2024-01-01", "2024-01-02", {}),
        ("0 minute", "2024-01-01", "2024-01-02", {}),
        ("x minute", "2024-01-01", "2024-01-02", {}),
        ("1 minute", "2024-13-01", "2024-01-02", {}),
        ("1 minute", "2024-01-01", "yesterday", {}),
        ("1 minute", "2024-01-03", "2024-01-02", {}),
        ("1 minute", "2024-01-03", "9999-12-31", {}),
        ("1 minute", "9" * 20, "9" * 21, {}),
        ("1 minute", "-86400000", "2024-01-03", {}),
        ("1 minute", "2024-01-01", "2024-01-02", {"limit": 0}),
        ("1 minute", "2024-01-01", "2024-01-02", {"limit": "many"}),
        ("1 minute", "2024-01-01", "2024-01-02", {"sort": "up"}),
        ("1 minute", "2024-01-01", "2024-01-02", {"cursor": "%%"}),
        ("1 minute", "2024-01-01", "2024-01-02", {"cursor": "YWJj"}),
    ],
)
def test_bad_parameters_are_refused(span: str, start: str, end: str, options: dict[str, object]) -> None:
    with pytest.raises(BadParameter):
        query("AAPL", span, start, end, **options)

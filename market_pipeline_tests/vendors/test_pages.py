"""Pages are followed safely, an empty success is doubted, and nothing is returned twice or outside the range."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta

import polars as pl
import pytest

from market_pipeline.errors import VendorBadAnswer, VendorUnavailable
from market_pipeline.vendors.base import MINUTE_SCHEMA, MinutePage
from market_pipeline.vendors.polygon.pages import next_link
from market_pipeline_tests.vendors.conftest import START, Pair, at
from market_pipeline_tests.vendors.scripted import KEY, Asked, Reply, Script, bar, ms, page


def minutes_of(pages: Iterable[MinutePage]) -> list[int]:
    """Return the minutes in all pages, in their order."""
    frame = pl.concat([p.frame for p in pages])
    return [(value - ms(0)) // 60_000 for value in frame["ts"].cast(pl.Int64)]


async def collect(pages: AsyncIterator[MinutePage], into: list[MinutePage]) -> None:
    async for got in pages:
        into.append(got)


async def test_one_page(bench) -> None:
    async with bench(Script(page([bar(0, 1.1, n=7), bar(2, 1.2, vw=None)]))) as b:
        (got,) = await b.pages()
        assert dict(got.frame.schema) == MINUTE_SCHEMA
        assert got.frame.rows()[0] == (START, 1.1, 1.1, 1.1, 1.1, 10.0, 1.1, 7)
        assert got.frame["vwap"].to_list() == [1.1, None]
        assert (got.page_no, got.last, got.attempts, got.empty_confirmed, got.request_id) == (1, True, 1, False, "r1")
        assert (got.request.start, got.request.end) == (START, at(10))
        assert got.fetched_at <= got.received_at
        (asked,) = b.vendor.asked
        assert asked.path == f"/v2/aggs/ticker/C:EURUSD/range/1/minute/{ms(0)}/{ms(10) - 1}"
        assert asked.query == {"adjusted": "true", "sort": "asc", "limit": "50000"}


async def test_fetched_at_is_before_the_request(bench) -> None:
    async with bench(Script(Reply(delay_s=0.2, body=page([bar(0)]).body))) as b:
        (got,) = await b.pages()
        assert got.received_at - got.fetched_at >= timedelta(seconds=0.2)


async def test_rows_outside_the_range_are_dropped_and_rows_are_sorted(bench) -> None:
    async with bench(Script(page([bar(3), bar(-1), bar(10), bar(0), bar(9)]))) as b:
        assert minutes_of(await b.pages()) == [0, 3, 9]
        assert b.client.stats.outside_rows == 2


async def test_equal_repeats_are_dropped(bench) -> None:
    async with bench(Script(page([bar(0), bar(1), bar(0), bar(1)]))) as b:
        assert minutes_of(await b.pages()) == [0, 1]
        assert b.client.stats.duplicate_rows == 2


async def test_next_url_is_followed_without_its_key(bench) -> None:
    def answer(asked: Asked) -> Reply:
        if asked.path == "/next":
            return page([bar(5), bar(6)])
        return page([bar(0), bar(4)], next_url=f"http://{asked.headers['host']}/next?cursor=a%2Fb&apiKey={KEY}")

    async with bench(answer) as b:
        pages = await b.pages()
        assert minutes_of(pages) == [0, 4, 5, 6]
        assert [(p.page_no, p.last) for p in pages] == [(1, False), (2, True)]
        assert b.vendor.asked[1].query == {"cursor": "a/b"}
        assert b.vendor.asked[1].headers["authorization"] == f"Bearer {KEY}"


async def test_a_page_without_rows_does_not_end_the_walk(bench) -> None:
    replies = [page([bar(0)], next_url="/b"), page([], next_url="/c"), page([bar(9)])]
    async with bench(Script(*replies)) as b:
        assert minutes_of(await b.pages()) == [0, 9]


async def test_endless_empty_pages_are_refused(bench) -> None:
    def answer(asked: Asked) -> Reply:
        return page([], next_url=f"/n?cursor={int(asked.query.get('cursor', 0)) + 1}")

    async with bench(answer) as b:
        with pytest.raises(VendorBadAnswer, match="page after page is empty"):
            await b.pages()
        assert len(b.vendor.asked) < 6


async def test_a_circle_of_pages_is_left_by_asking_for_the_rest(bench) -> None:
    def answer(asked: Asked) -> Reply:
        if asked.path == "/b":
            return page([bar(1)], next_url="/b")
        return page([bar(0)], next_url="/b") if asked.range_ms[0] == ms(0) else page([bar(2)])

    async with bench(answer) as b:
        assert minutes_of(await b.pages()) == [0, 1, 2]
        assert b.client.stats.retries == {"bad_pages": 1}


@pytest.mark.parametrize(
    "answer",
    [
        lambda asked: page([bar(0)], next_url=f"http://{asked.headers['host']}{asked.path}?again"),
        lambda asked: page([bar(0)], next_url=f"/n?cursor={asked.query.get('cursor', '')}x"),
        lambda asked: page([bar(5 if asked.path == "/a" else 7)], next_url="/a" if asked.path != "/a" else "/b"),
    ],
    ids=["itself", "new links to the same rows", "backwards"],
)
async def test_pages_that_do_not_advance_are_refused_after_bounded_tries(bench, answer) -> None:
    async with bench(answer) as b:
        seen: list[MinutePage] = []
        with pytest.raises(VendorBadAnswer) as caught:
            await collect(b.client.minutes(Pair(), START, at(10)), seen)
        assert caught.value.symbol == "EUR/USD"
        assert len(minutes_of(seen)) == len(set(minutes_of(seen)))
        assert len(b.vendor.asked) <= 9


async def test_a_circle_behind_the_last_minute_does_no_harm(bench) -> None:
    async with bench(Script(page([bar(0), bar(9)], next_url="/b"), page([bar(9)], next_url="/b"))) as b:
        assert minutes_of(await b.pages()) == [0, 9]


async def test_the_last_bar_may_be_repeated_by_the_next_page(bench) -> None:
    async with bench(Script(page([bar(0), bar(1)], next_url="/b"), page([bar(1), bar(2)]))) as b:
        assert minutes_of(await b.pages()) == [0, 1, 2]


async def test_contradiction_between_pages_is_asked_again(bench) -> None:
    replies = [page([bar(0), bar(1, 1.1)], next_url="/b"), page([bar(1, 1.2), bar(2)]), page([bar(2), bar(3)])]
    async with bench(Script(*replies)) as b:
        assert minutes_of(await b.pages()) == [0, 1, 2, 3]
        assert b.vendor.asked[2].range_ms == (ms(2), ms(10) - 1)


FOREIGN = [
    "https://evil.example/v2/x",
    "http://evil.example/v2/x",
    "//evil.example/v2/x",
    "https://api.polygon.io.evil.example/x",
    "https://api.polygon.io@evil.example/x",
    "https://key@api.polygon.io/x",
    "https://api.polygon.io:8443/x",
    "ftp://api.polygon.io/x",
    "javascript:alert(1)",
    "http://127.0.0.1:1/x",
    "https://[::1/x",
]


@pytest.mark.parametrize("link", FOREIGN)
async def test_foreign_links_are_never_followed(bench, link: str) -> None:
    async with bench(Script(page([bar(0)], next_url=link))) as b:
        with pytest.raises(VendorBadAnswer, match="extra_hosts"):
            await b.pages()
        assert len(b.vendor.asked) == 1


HOSTS = frozenset({"api.polygon.io", "api.massive.com"})


@pytest.mark.parametrize(
    "link", ["https://api.massive.com/x?a=1", "https://api.polygon.io:443/x?a=1", "/x?a=1&APIKEY=k"]
)
def test_links_to_allowed_hosts_are_followed(link: str) -> None:
    assert next_link(link, "https://api.polygon.io", HOSTS).endswith("/x?a=1")


def test_a_link_from_https_to_http_is_not_followed() -> None:
    with pytest.raises(ValueError, match="not allowed"):
        next_link("http://api.polygon.io/x", "https://api.polygon.io", HOSTS)


@pytest.mark.parametrize("empty", [page(None), page([]), Reply(body=b'{"status":"OK","resultsCount":0}')])
async def test_an_empty_success_is_believed_at_the_third_time(bench, empty: Reply) -> None:
    async with bench(Script(empty)) as b:
        (got,) = await b.pages()
        assert (got.frame.height, dict(got.frame.schema)) == (0, MINUTE_SCHEMA)
        assert (got.empty_confirmed, got.last, got.attempts) == (True, True, 3)
        assert b.gate.passed == 3
        assert b.client.stats.empty_answers == 3


async def test_an_empty_success_that_was_wrong(bench) -> None:
    async with bench(Script(page(None), page(None), page([bar(1)]))) as b:
        (got,) = await b.pages()
        assert (got.frame.height, got.empty_confirmed, got.attempts) == (1, False, 3)


async def test_an_empty_success_where_nothing_is_expected_is_asked_once(bench) -> None:
    async with bench(Script(page(None))) as b:
        (got,) = await b.pages(expects=lambda request: False)
        assert (got.frame.height, got.empty_confirmed, got.attempts) == (0, False, 1)


async def test_a_full_page_without_a_link_is_suspect(bench) -> None:
    def answer(asked: Asked) -> Reply:
        first = (asked.range_ms[0] - ms(0)) // 60_000
        return page([bar(m) for m in range(first, min(first + 4, 10))])

    async with bench(answer, page_limit=4) as b:
        pages = await b.pages()
        assert minutes_of(pages) == list(range(10))
        assert [p.last for p in pages] == [False, False, True]
        assert [a.range_ms[0] for a in b.vendor.asked] == [ms(0), ms(4), ms(8)]


async def test_a_full_page_that_reaches_the_end_is_complete(bench) -> None:
    async with bench(Script(page([bar(m) for m in range(10)])), page_limit=10) as b:
        await b.pages()
        assert len(b.vendor.asked) == 1


async def test_the_next_request_is_under_way_while_a_page_is_used(bench) -> None:
    def answer(asked: Asked) -> Reply:
        first = (asked.range_ms[0] - ms(0)) // 60_000
        return page([bar(first)])

    async with bench(answer) as b:
        numbers = []
        async for got in b.client.minutes(Pair(), START, START + timedelta(days=90)):
            await asyncio.sleep(0.1)
            numbers.append((got.page_no, got.last, len(b.vendor.asked)))
        assert numbers == [(1, True, 2), (1, True, 3), (1, True, 3)]


async def test_leaving_early_leaves_nothing_running(bench) -> None:
    async with bench(lambda asked: page([bar((asked.range_ms[0] - ms(0)) // 60_000)])) as b:
        pages = b.client.minutes(Pair(), START, START + timedelta(days=400))
        await anext(pages)
        await pages.aclose()
        await asyncio.sleep(0.05)
        assert len(b.vendor.asked) <= 2
        assert len(asyncio.all_tasks()) <= 2 + len(b.vendor.asked)


async def test_pages_before_a_failure_are_given_and_the_failure_names_its_own_range(bench) -> None:
    async with bench(Script(page([bar(0)]), Reply(503))) as b:
        seen: list[MinutePage] = []
        with pytest.raises(VendorUnavailable) as caught:
            await collect(b.client.minutes(Pair(), START, START + timedelta(days=60)), seen)
        assert minutes_of(seen) == [0]
        assert (caught.value.start, caught.value.end) == (seen[0].request.end, START + timedelta(days=60))


async def test_days_may_begin_before_the_range(bench) -> None:
    async with bench(Script(page([bar(-300), bar(1140)]))) as b:
        frame = await b.client.aggregates("C:EURUSD", 1, "day", START, START + timedelta(days=2))
        assert frame.height == 2
        assert "/range/1/day/" in b.vendor.asked[0].path

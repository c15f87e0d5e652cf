"""Every error of the vendor has its type; the transient ones are retried, bounded and jittered, within the rate."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from market_pipeline.errors import (
    Terminal,
    VendorAuthError,
    VendorBadAnswer,
    VendorError,
    VendorNotEntitled,
    VendorNotFound,
    VendorRateLimited,
    VendorRequestRejected,
    VendorUnavailable,
)
from market_pipeline.settings import VendorSettings, load_settings
from market_pipeline.vendors.polygon import PolygonClient
from market_pipeline.vendors.polygon.answers import Subject, clock_error, read_retry_after
from market_pipeline.vendors.polygon.redaction import redact
from market_pipeline_tests.vendors.conftest import START, CountingGate, at
from market_pipeline_tests.vendors.scripted import KEY, Reply, Script, bar, page


def said(code: int, /, **members: object) -> Reply:
    return Reply(code, json.dumps(members).encode())


NOT_ENTITLED = "You are not entitled to this data. Please upgrade your plan at https://polygon.io/pricing"

SHAPES = [
    (said(401, status="ERROR", error="Unknown API Key", request_id="q1"), VendorAuthError),
    (Reply(401), VendorAuthError),
    (said(403, status="NOT_AUTHORIZED", message=NOT_ENTITLED, request_id="q1"), VendorNotEntitled),
    (said(403, status="ERROR", error=NOT_ENTITLED), VendorNotEntitled),
    (said(400, status="ERROR", error=NOT_ENTITLED), VendorNotEntitled),
    (said(200, status="NOT_AUTHORIZED", message="no"), VendorNotEntitled),
    (said(200, status="ERROR", error=NOT_ENTITLED), VendorNotEntitled),
    (Reply(404, b"404 page not found"), VendorNotFound),
    (said(404, status="NOT_FOUND", message="Ticker not found."), VendorNotFound),
    (
        said(400, status="ERROR", error="The parameter 'to' cannot be a time that occurs before 'from'"),
        VendorRequestRejected,
    ),
    (Reply(302, headers={"Location": "https://elsewhere.example/"}), VendorRequestRejected),
    (
        said(429, status="ERROR", error="You've exceeded the maximum requests per minute, upgrade your plan"),
        VendorRateLimited,
    ),
    (Reply(429), VendorRateLimited),
    (Reply(500, b"<html>oops</html>"), VendorUnavailable),
    (Reply(503, b'{"status":"ERROR"'), VendorUnavailable),
    (Reply(body=b'{"status":"OK","resu'), VendorBadAnswer),
    (Reply(body=b"[]"), VendorBadAnswer),
    (Reply(body=b""), VendorBadAnswer),
    (Reply(body=b"\xff\xfe{}"), VendorBadAnswer),
    (said(200, status="ERROR", error="Something went wrong"), VendorBadAnswer),
    (Reply(200, page([bar(0)]).body, cut=40), VendorUnavailable),
    (Reply(200, page([bar(0)]).body, headers={"Content-Encoding": "gzip"}), VendorUnavailable),
    (page([bar(0)], ticker="C:GBPUSD"), VendorBadAnswer),
    (page(None, resultsCount=3), VendorBadAnswer),
    (page([bar(0)], resultsCount=2), VendorBadAnswer),
    (page(None, results={"t": 1}), VendorBadAnswer),
    (page([bar(0, 1.1), bar(1), bar(0, 1.2)]), VendorBadAnswer),
    (page([bar(100), bar(101)]), VendorBadAnswer),
]


@pytest.mark.parametrize(("reply", "kind"), SHAPES, ids=lambda value: getattr(value, "__name__", ""))
async def test_each_failure_has_its_type_and_names_symbol_and_range(
    bench, reply: Reply, kind: type[VendorError]
) -> None:
    async with bench(Script(reply)) as b:
        with pytest.raises(VendorError) as caught:
            await b.pages()
        assert type(caught.value) is kind
        assert (caught.value.symbol, caught.value.start, caught.value.end) == ("EUR/USD", START, at(10))
        assert str(caught.value).startswith("EUR/USD 2024-01-01 00:00 to 2024-01-01 00:10 UTC: ")
        assert len(b.vendor.asked) == (1 if issubclass(kind, Terminal) else 3)
        assert b.gate.passed == b.client.stats.requests == len(b.vendor.asked), "every attempt passes the gate"
        if b'"q1"' in reply.body:
            assert (caught.value.status, caught.value.request_id) == (reply.status, "q1")


async def test_auth_errors_name_the_setting(bench) -> None:
    for reply in (Reply(401), Reply(403)):
        async with bench(Script(reply)) as b:
            for call in (b.client.probe, b.client.market_status):
                with pytest.raises(VendorError, match="MARKET_PIPELINE_VENDOR__API_KEY"):
                    await call()
            with pytest.raises(VendorError, match="POLYGON_API_KEY"):
                await b.pages()


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\nbreak"])
def test_a_key_that_cannot_be_one_is_refused_before_anything_is_sent(key: str) -> None:
    with pytest.raises(VendorAuthError, match="POLYGON_API_KEY") as caught:
        PolygonClient(VendorSettings(api_key=SecretStr(key)), CountingGate())
    assert not key or key not in str(caught.value)


async def test_no_server_is_unavailable(bench) -> None:
    async with bench(Script(page([]))) as b:
        b.vendor._server.close()
        await b.vendor._server.wait_closed()
        with pytest.raises(VendorUnavailable, match="cannot be reached"):
            await b.pages()


async def test_silence_is_unavailable(bench) -> None:
    async with bench(Script(Reply(delay_s=1.0)), timeout_s=0.05, max_attempts=2) as b:
        with pytest.raises(VendorUnavailable, match="no whole answer in time"):
            await b.pages()
        assert len(b.vendor.asked) == 2
        assert all(0.05 <= delay < 1 for delay in b.gate.delays)


async def test_transient_failures_pass(bench) -> None:
    failures = [Reply(503), Reply(429), Reply(body=b"{"), Reply(200, page([bar(0)]).body, cut=10)]
    async with bench(Script(*failures, page([bar(0)])), max_attempts=5) as b:
        with capture_logs() as logs:
            (got,) = await b.pages()
        assert got.frame.height == 1
        assert got.attempts == 5
        assert b.client.stats.retries == {"http_503": 1, "rate_limited": 1, "bad_answer": 1, "unavailable": 1}
        retries = [entry for entry in logs if entry["event"] == "vendor_retry"]
        assert [entry["attempt"] for entry in retries] == [1, 2, 3, 4]
        assert all((e["symbol"], e["start"], e["end"]) == ("EUR/USD", START, at(10)) for e in retries)


async def test_pauses_grow_and_are_jittered(bench) -> None:
    async with bench(Script(Reply(503)), max_attempts=6, backoff_initial_s=0.01, backoff_max_s=0.08) as b:
        with capture_logs() as logs, pytest.raises(VendorUnavailable):
            await b.pages()
        waits = [entry["wait_s"] for entry in logs if entry["event"] == "vendor_retry"]
        longest = [0.01, 0.02, 0.04, 0.08, 0.08]
        assert all(half / 2 - 0.001 <= wait <= half + 0.001 for wait, half in zip(waits, longest, strict=True))
        assert len({wait / half for wait, half in zip(waits, longest, strict=True)}) > 1
        gaps = [later.at - earlier.at for earlier, later in pairwise(b.vendor.asked)]
        assert all(gap >= wait - 0.002 for gap, wait in zip(gaps, waits, strict=True))


async def test_retry_after_is_honoured(bench) -> None:
    limited = Reply(429, headers={"Retry-After": "0.3"})
    async with bench(Script(limited, page([bar(0)]))) as b:
        await b.pages()
        assert b.vendor.asked[1].at - b.vendor.asked[0].at >= 0.3


async def test_a_retry_after_of_hours_is_not_waited_for(bench) -> None:
    async with bench(Script(Reply(429, headers={"Retry-After": "7200"}))) as b:
        with pytest.raises(VendorRateLimited) as caught:
            await b.pages()
        assert caught.value.retry_after == 7200
        assert len(b.vendor.asked) == 1


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    assert read_retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=50))) == pytest.approx(50, abs=2)
    assert read_retry_after("-3") == 0.0
    assert [read_retry_after(text) for text in ("soon", "inf", "nan", "", None)] == [None] * 5


async def test_a_cancelled_load_stops_at_once(bench) -> None:
    async with bench(Script(Reply(503)), backoff_initial_s=20, backoff_max_s=20) as b:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(b.pages(), 2)
        assert len(b.vendor.asked) == 1


async def test_the_key_is_in_the_header_and_nowhere_else(bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = said(401, status="ERROR", error=f"Unknown API Key {KEY} in https://x.example/y?apiKey={KEY}&a=1")
    link = f"/next?cursor=c1&apiKey={KEY}"
    logs_of: list[str] = []
    for script in (
        Script(echo),
        Script(Reply(503, f"apiKey={KEY}".encode())),
        Script(page([bar(0)], next_url=link), Reply(200, KEY.encode())),
        Script(page([bar(0)], next_url=f"https://evil.example/?apiKey={KEY}")),
        Script(page([bar(0)], ticker=KEY)),
    ):
        async with bench(script) as b:
            with capture_logs() as logs, pytest.raises(VendorError) as caught:
                await b.pages()
            logs_of.append(str(logs))
            logs_of.append("".join(traceback.format_exception(caught.value)))
            logs_of.append(repr(caught.value) + repr(b.client) + repr(b.client.stats))
            assert all(asked.headers["authorization"] == f"Bearer {KEY}" for asked in b.vendor.asked)
            assert all(KEY not in str((asked.path, asked.query)) for asked in b.vendor.asked)
    everything = "\n".join(logs_of) + caplog.text
    assert KEY not in everything
    assert "adjusted=true" not in everything
    assert "HTTP Request: GET http://" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET https://api.polygon.io/v2/x?apiKey=abc&y=1 failed", "GET https://api.polygon.io/v2/x?*** failed"),
        ('{"apiKey": "abc"}', '{"apiKey": "***"}'),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("api_key=abc", "api_key=***"),
        ("the key s3cret is wrong", "the key *** is wrong"),
        ("x" * 400, "x" * 300 + "…"),
    ],
)
def test_redaction(text: str, expected: str) -> None:
    assert redact(text, "s3cret") == expected


async def test_reference_routes(bench) -> None:
    status = (
        b'{"market":"open","earlyHours":false,"serverTime":"2022-04-28T16:48:08-04:00",'
        b'"exchanges":{"nyse":"open"},"currencies":{"fx":"open","crypto":"open"}}'
    )
    async with bench(lambda asked: Reply(body=status)) as b:
        now = await b.client.market_status()
        assert (now.market, now.currencies["fx"], now.exchanges) == ("open", "open", {"nyse": "open"})
        assert now.server_time == datetime(2022, 4, 28, 20, 48, 8, tzinfo=UTC)
        assert 0 < await b.client.probe() < 2


async def test_the_key_alone_reaches_the_real_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYGON_API_KEY", KEY)
    settings = load_settings(tmp_path).vendor
    async with PolygonClient(settings, CountingGate()) as client:
        assert repr(client) == "PolygonClient('https://api.polygon.io')"
    assert settings.rate == 5


@pytest.mark.parametrize(
    ("headers", "ahead"),
    [
        ({"date": "Mon, 15 Jan 2024 11:59:40 GMT"}, "19"),
        ({"date": "Mon, 15 Jan 2024 11:59:40 GMT", "age": "15"}, None),
        ({"date": "Mon, 15 Jan 2024 11:59:40 -0000"}, "19"),
        ({"date": "Mon, 15 Jan 2024 11:59:49 GMT"}, None),
        ({"date": "Mon, 15 Jan 2024 12:30:00 GMT"}, None),
        ({"date": "Mon, 15 Jan 2024 06:59:40 -0500"}, "19"),
        ({"date": "yesterday"}, None),
        ({"date": "Mon, 15 Jan 2024 11:59:40 GMT", "age": "?"}, None),
        ({}, None),
    ],
)
def test_how_far_our_clock_is_ahead(headers: dict[str, str], ahead: str | None) -> None:
    sent_at = datetime(2024, 1, 15, 12, tzinfo=UTC)
    error = clock_error(Subject("EUR/USD"), sent_at, httpx.Headers(headers), 10.0)
    assert (error is None) == (ahead is None)
    assert ahead is None or f"is {ahead} s ahead" in str(error)

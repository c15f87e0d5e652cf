"""Answers over HTTP: the keys and types of the recorded ones, the key check, errors, market status, ticks."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from market_pipeline.simulator import truth
from market_pipeline.simulator.plans import PLANS
from market_pipeline.simulator.server import SimulatorThread
from market_pipeline.simulator.vendor import Vendor

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "vendor_rest_samples"
recorded = pytest.mark.skipif(not SAMPLES.exists(), reason="the vendor's recorded answers are not beside the project")
Utc = Callable[..., datetime]


def load(path: str) -> Any:
    return json.loads((SAMPLES / path).read_text())


def shape(value: Any) -> Any:
    """Return the keys and types of a value, a list's being those of its first row."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    return [shape(value[0])] if isinstance(value, list) else type(value)


@recorded
def test_aggregates_have_the_recorded_shape(http: httpx.Client) -> None:
    sample = load("recorded_AAPL_1day.json")["response"]
    answer = http.get("/v2/aggs/ticker/AAPL/range/1/day/2023-01-01/2023-01-10")
    assert answer.headers["content-type"] == "application/json"
    served = answer.json()
    assert shape(served) == shape(sample)
    assert list(served) == list(sample)
    assert [row["t"] for row in served["results"]] == [row["t"] for row in sample["results"]]
    for count in ("queryCount", "resultsCount", "count"):
        assert served[count] == sample[count]


@recorded
def test_market_status_has_the_recorded_shape(http: httpx.Client) -> None:
    assert shape(http.get("/v1/marketstatus/now").json()) == shape(load("v1/marketstatus/now.json"))
    served, sample = http.get("/v1/marketstatus/upcoming").json(), load("v1/marketstatus/upcoming.json")
    assert shape(served) == shape(sample)
    early = [row for row in served if row["status"] == "early-close"]
    assert shape(early) == shape([row for row in sample if row["status"] == "early-close"])


def test_a_page_holds_the_truth(http: httpx.Client, utc: Utc) -> None:
    page = http.get("/v2/aggs/ticker/C:GBPUSD/range/1/minute/2023-03-01/2023-03-01", params={"limit": 50_000}).json()
    expected = truth.minutes("C:GBPUSD", utc(2023, 3, 1), utc(2023, 3, 2)).with_columns(
        t=truth.minutes("C:GBPUSD", utc(2023, 3, 1), utc(2023, 3, 2))["ts"].dt.epoch("ms")
    )
    names = {"v": "volume", "vw": "vwap", "o": "open", "c": "close", "h": "high", "l": "low", "t": "t", "n": "trades"}
    for short, name in names.items():
        assert [row[short] for row in page["results"]] == expected[name].to_list()
    assert "next_url" not in page
    assert page["resultsCount"] == page["queryCount"] == expected.height


def test_next_url_leads_through_all_pages_without_the_key(simulator: SimulatorThread, http: httpx.Client) -> None:
    url: str | None = "/v2/aggs/ticker/X:ETHUSD/range/1/minute/2023-03-01/2023-03-02"
    rows, pages = [], 0
    params: dict[str, str] | None = {"limit": "1000", "apiKey": simulator.api_key}
    while url:
        page = http.get(url, params=params).json()
        params = None
        rows += [row["t"] for row in page["results"]]
        pages += 1
        url = page.get("next_url")
        assert url is None or (url.startswith(simulator.base_url) and simulator.api_key not in url)
    assert pages == 3
    assert rows == sorted(set(rows))
    assert len(rows) == 2_880


def test_descending_is_the_reverse(http: httpx.Client) -> None:
    path = "/v2/aggs/ticker/C:GBPUSD/range/1/hour/2023-03-01/2023-03-01"
    up, down = (http.get(path, params={"sort": sort}).json()["results"] for sort in ("asc", "desc"))
    assert up == down[::-1]
    assert len(up) == 24


@pytest.mark.parametrize("ticker", ["C:ZZZUSD", "nothing", "X:ZZZUSD"])
def test_an_unknown_ticker_is_an_empty_success(http: httpx.Client, ticker: str) -> None:
    answer = http.get(f"/v2/aggs/ticker/{ticker}/range/1/day/2023-01-01/2023-01-10")
    assert answer.status_code == 200
    page = answer.json()
    assert (page["status"], page["resultsCount"], page["ticker"]) == ("OK", 0, ticker)
    assert "results" not in page


def test_a_weekend_is_an_empty_success(http: httpx.Client) -> None:
    page = http.get("/v2/aggs/ticker/AAPL/range/1/minute/2024-07-06/2024-07-07").json()
    assert (page["status"], page["queryCount"]) == ("OK", 0)
    assert "results" not in page


def test_the_key_is_checked(simulator: SimulatorThread) -> None:
    url = f"{simulator.base_url}/v1/marketstatus/now"
    with httpx.Client(trust_env=False) as client:
        for headers, params in (
            ({}, {}),
            ({"Authorization": "Bearer wrong"}, {}),
            ({"Authorization": f"Basic {simulator.api_key}"}, {}),
            ({}, {"apiKey": "wrong"}),
        ):
            answer = client.get(url, headers=headers, params=params)
            assert answer.status_code == 401
            assert answer.json()["error"] == "Unknown API Key"
            assert answer.json()["status"] == "ERROR"
        assert client.get(url, params={"apiKey": simulator.api_key}).status_code == 200
        assert client.get(url, headers={"Authorization": f"Bearer {simulator.api_key}"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/v9/nothing", "/v2/aggs/ticker/AAPL/range/1/day/2023-01-01"])
def test_no_route_is_plain_text(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("span", ["1/day/2023-01-40/2023-02-01", "1/daily/2023-01-01/2023-02-01", "0/day/1/2"])
def test_a_malformed_request_is_400_with_a_reason(http: httpx.Client, span: str) -> None:
    answer = http.get(f"/v2/aggs/ticker/AAPL/range/{span}")
    assert answer.status_code == 400
    assert answer.json()["status"] == "ERROR"
    assert "Could not parse" in answer.json()["error"]


def test_market_status_follows_the_clock(simulator: SimulatorThread, http: httpx.Client, utc: Utc) -> None:
    seen = []
    for now in (
        utc(2024, 7, 2, 15),  # a Tuesday
        utc(2024, 7, 2, 12),
        utc(2024, 7, 2, 22),
        utc(2024, 7, 3, 2),
        utc(2024, 7, 4, 15),  # a holiday
        utc(2024, 7, 6, 15),  # a Saturday
    ):
        simulator.control.set_now(now)
        status = http.get("/v1/marketstatus/now").json()
        assert datetime.fromisoformat(status["serverTime"]) == now
        seen.append((status["market"], status["earlyHours"], status["afterHours"], status["currencies"]["fx"]))
    assert seen == [
        ("open", False, False, "open"),
        ("extended-hours", True, False, "open"),
        ("extended-hours", False, True, "open"),
        ("closed", False, False, "open"),
        ("closed", False, False, "open"),
        ("closed", False, False, "closed"),
    ]


def test_holidays_are_those_to_come(simulator: SimulatorThread, http: httpx.Client, utc: Utc) -> None:
    simulator.control.set_now(utc(2024, 11, 20))
    rows = http.get("/v1/marketstatus/upcoming").json()
    nyse = [row for row in rows if row["exchange"] == "NYSE"]
    assert [(row["date"], row["status"]) for row in nyse[:4]] == [
        ("2024-11-28", "closed"),
        ("2024-11-29", "early-close"),
        ("2024-12-24", "early-close"),
        ("2024-12-25", "closed"),
    ]
    assert nyse[1]["close"] == "2024-11-29T18:00:00.000Z"
    assert len(rows) == 2 * len(nyse)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_quotes_page_through_the_truth(http: httpx.Client, utc: Utc, order: str) -> None:
    expected = truth.ticks("C:EURUSD", utc(2014, 5, 6), utc(2014, 5, 6, 1))
    params: dict[str, str | int] | None = {
        "timestamp.gte": "2014-05-06",
        "timestamp.lt": truth.to_ms(utc(2014, 5, 6, 1)) * 1_000_000,
        "limit": 500,
        "order": order,
    }
    url: str | None = "/v3/quotes/C:EUR-USD"
    rows: list[dict[str, Any]] = []
    while url:
        page = http.get(url, params=params).json()
        params, url = None, page.get("next_url")
        rows += page["results"]
    rows = rows if order == "asc" else rows[::-1]
    assert [row["bid_price"] for row in rows] == expected["bid"].to_list()
    assert [row["ask_price"] for row in rows] == expected["ask"].to_list()
    assert [row["participant_timestamp"] // 1_000_000 for row in rows] == expected["ts"].dt.epoch("ms").to_list()
    assert set(rows[0]) == {"ask_exchange", "ask_price", "bid_exchange", "bid_price", "participant_timestamp"}


def test_trades_are_the_truths(http: httpx.Client, utc: Utc) -> None:
    expected = truth.ticks("X:ETHUSD", utc(2023, 5, 6), utc(2023, 5, 7))
    rows = http.get("/v3/trades/X:ETH-USD", params={"timestamp": "2023-05-06", "limit": 300}).json()["results"]
    assert [row["price"] for row in rows] == expected["price"].to_list()[:-301:-1]
    assert len({row["id"] for row in rows}) == 300
    assert http.get("/v3/quotes/X:ETH-USD").json()["results"] == []
    assert http.get("/v3/trades/C:EUR-USD").json()["results"] == []
    assert http.get("/v3/trades/X:ETH-USD", params={"limit": 60_000}).status_code == 400
    assert http.get("/v3/trades/X:ETH-USD", params={"timestamp": "soon"}).status_code == 400


def test_a_restatement_and_a_withdrawal_show_at_once(simulator: SimulatorThread, http: httpx.Client, utc: Utc) -> None:
    path = "/v2/aggs/ticker/X:ETHUSD/range/1/minute/2023-03-01/2023-03-01"
    minute = utc(2023, 3, 1, 4)
    before = http.get(path).json()["results"]
    simulator.control.restate("X:ETHUSD", minute, close=before[240]["c"] + 1.5, high=before[240]["h"] + 2)
    simulator.control.withdraw("X:ETHUSD", minute + timedelta(minutes=5))
    simulator.control.remove("X:ETHUSD", minute + timedelta(minutes=10), minute + timedelta(minutes=12))
    after = {row["t"]: row for row in http.get(path).json()["results"]}
    assert len(after) == len(before) - 3
    assert after[truth.to_ms(minute)]["c"] == before[240]["c"] + 1.5
    assert truth.to_ms(minute) + 5 * 60_000 not in after
    simulator.control.restore("X:ETHUSD", utc(2023, 3, 1), utc(2023, 3, 2))
    assert http.get(path).json()["results"] == before


def test_answers_are_compressed_only_where_both_sides_want_it(simulator: SimulatorThread) -> None:
    path = "/v2/aggs/ticker/C:GBPUSD/range/1/hour/2023-03-01/2023-03-01"
    vendor = Vendor.make("key", plan=PLANS["unlimited"], gzip=True)
    with SimulatorThread(vendor, "key") as zipping, httpx.Client(trust_env=False) as client:
        asked = {"apiKey": "key"}
        zipped = client.get(zipping.base_url + path, params=asked)
        plain = client.get(zipping.base_url + path, params=asked, headers={"Accept-Encoding": "identity"})
        default = client.get(simulator.base_url + path, params={"apiKey": simulator.api_key})
    assert zipped.headers["content-encoding"] == "gzip"
    assert int(zipped.headers["content-length"]) < int(plain.headers["content-length"])
    assert zipped.json()["results"] == plain.json()["results"] == default.json()["results"]
    assert "content-encoding" not in plain.headers
    assert "content-encoding" not in default.headers


def test_the_control_interface_wants_its_token(simulator: SimulatorThread) -> None:
    with httpx.Client(base_url=simulator.base_url, trust_env=False) as client:
        assert client.get("/_control/stats").status_code == 401
        assert client.get("/_control/stats", headers={"X-Control-Token": simulator.api_key}).status_code == 401
        assert (
            client.post("/_control/reset", headers={"Authorization": f"Bearer {simulator.api_key}"}).status_code == 401
        )

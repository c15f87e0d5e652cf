"""Each fault, as a client meets it."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from market_pipeline.simulator.client import ControlError
from market_pipeline.simulator.server import SimulatorThread

PATH = "/v2/aggs/ticker/C:GBPUSD/range/1/minute/2023-03-01/2023-03-01"
SMALL = {"limit": "100"}


def page(http: httpx.Client, url: str = PATH, **params: str) -> dict[str, Any]:
    answer = http.get(url, params=params or None)
    assert answer.status_code == 200
    return dict(answer.json())


def times(page_: dict[str, Any]) -> list[int]:
    return [row["t"] for row in page_["results"]]


@pytest.mark.parametrize(
    ("fault", "options", "status", "body"),
    [
        ("unauthorized", {}, 401, {"status": "ERROR", "error": "Unknown API Key"}),
        ("forbidden", {}, 403, {"status": "NOT_AUTHORIZED"}),
        ("forbidden", {"legacy": True}, 403, {"status": "ERROR"}),
        ("not_found", {"plain": False}, 404, {"status": "NOT_FOUND"}),
        ("not_found", {}, 404, None),
        ("rate_limited", {}, 429, {"status": "ERROR"}),
        ("rate_limited", {"body": False}, 429, None),
        ("server_error", {}, 500, None),
        ("server_error", {"status": 502}, 502, None),
        ("server_error", {"status": 503}, 503, None),
    ],
)
def test_refusals(
    simulator: SimulatorThread, http: httpx.Client, fault: str, options: dict[str, Any], status: int, body: Any
) -> None:
    simulator.control.add_fault(fault, times=1, **options)
    answer = http.get(PATH)
    assert answer.status_code == status
    if body is None:
        with pytest.raises(ValueError):
            answer.json()
    else:
        assert body.items() <= answer.json().items()
    assert answer.content or not options.get("body", True)
    assert http.get(PATH).status_code == 200
    assert simulator.control.requests(status=status)[0].faults == [fault]


def test_retry_after(simulator: SimulatorThread, http: httpx.Client) -> None:
    simulator.control.add_fault("rate_limited", retry_after=7)
    assert http.get(PATH).headers["retry-after"] == "7"
    simulator.control.clear_faults()
    assert http.get(PATH).status_code == 200


def test_slow_before_the_answer_and_within_it(simulator: SimulatorThread, http: httpx.Client) -> None:
    for trickle in (False, True):
        simulator.control.add_fault("slow", delay=0.4, trickle=trickle, times=1)
        began = time.perf_counter()
        with http.stream("GET", PATH) as answer:
            headers = time.perf_counter() - began
            body = answer.read()
        assert time.perf_counter() - began >= 0.4
        assert (headers < 0.3) is trickle
        assert json.loads(body)["resultsCount"] > 1_000


def test_slow_joins_another_fault(simulator: SimulatorThread, http: httpx.Client) -> None:
    simulator.control.add_fault("server_error")
    simulator.control.add_fault("slow", delay=0.2)
    began = time.perf_counter()
    assert http.get(PATH).status_code == 500
    assert time.perf_counter() - began >= 0.2
    assert simulator.control.requests()[-1].faults == ["slow", "server_error"]


def test_a_dropped_connection(simulator: SimulatorThread, http: httpx.Client) -> None:
    simulator.control.add_fault("drop_connection", times=1)
    with pytest.raises(httpx.TransportError):
        http.get(PATH)
    assert http.get(PATH).status_code == 200
    assert [entry.status for entry in simulator.control.requests()] == [0, 200]


def test_a_cut_body(simulator: SimulatorThread, http: httpx.Client) -> None:
    simulator.control.add_fault("cut_body", times=1)
    pieces: list[bytes] = []
    with http.stream("GET", PATH) as answer:
        assert answer.status_code == 200
        promised = int(answer.headers["content-length"])
        with pytest.raises(httpx.RemoteProtocolError):
            pieces.extend(answer.iter_raw())
    assert 0 < sum(map(len, pieces)) < promised
    assert http.get(PATH).status_code == 200


def test_invalid_json(simulator: SimulatorThread, http: httpx.Client) -> None:
    simulator.control.add_fault("invalid_json", times=1)
    answer = http.get(PATH)
    assert answer.status_code == 200
    with pytest.raises(ValueError):
        answer.json()
    assert page(http)


@pytest.mark.parametrize("absent", [False, True])
def test_null_results_for_a_range_with_data(simulator: SimulatorThread, http: httpx.Client, absent: bool) -> None:
    simulator.control.add_fault("null_results", absent=absent, times=1)
    # A range without data is no such fault, and does not use it up.
    assert "results" not in page(http, "/v2/aggs/ticker/C:GBPUSD/range/1/minute/2023-03-04/2023-03-04")
    empty = page(http, limit="100")
    assert empty["status"] == "OK"
    assert empty["resultsCount"] == empty["queryCount"] == 0
    assert empty.get("results") is None
    assert ("results" in empty) is not absent
    assert "next_url" not in empty
    assert len(page(http)["results"]) > 1_000


def test_a_page_that_points_at_itself(simulator: SimulatorThread, http: httpx.Client) -> None:
    simulator.control.add_fault("page_loop", skip=1)
    first = page(http, **SMALL)
    second = page(http, first["next_url"])
    third = page(http, second["next_url"])
    assert second["next_url"] == first["next_url"] == third["next_url"]
    assert times(second) == times(third) != times(first)


def test_pages_in_a_circle(simulator: SimulatorThread, http: httpx.Client) -> None:
    simulator.control.add_fault("page_loop", cycle=True)
    first = page(http, **SMALL)
    second = page(http, first["next_url"])
    again = page(http, second["next_url"])
    assert times(second) != times(first)
    assert times(again) == times(first)
    assert simulator.api_key not in second["next_url"]


def test_a_next_page_elsewhere(simulator: SimulatorThread, http: httpx.Client) -> None:
    simulator.control.add_fault("foreign_next_url", times=1, host="elsewhere.invalid")
    assert page(http)["status"] == "OK"  # without a next page there is nothing to redirect
    assert page(http, **SMALL)["next_url"].startswith("http://elsewhere.invalid/v2/aggs/")
    assert "elsewhere" not in page(http, **SMALL)["next_url"]


def test_a_cut_page_without_its_next(simulator: SimulatorThread, http: httpx.Client) -> None:
    simulator.control.add_fault("limit_reached_without_next_url", times=1)
    suspect = page(http, **SMALL)
    assert suspect["queryCount"] == 100
    assert "next_url" not in suspect
    assert "next_url" in page(http, **SMALL)


def test_rows_twice_and_out_of_order(simulator: SimulatorThread, http: httpx.Client) -> None:
    sound = times(page(http, **SMALL))
    simulator.control.add_fault("duplicate_rows", times=1)
    doubled = page(http, **SMALL)
    assert len(times(doubled)) == len(sound) + 1 == doubled["resultsCount"]
    assert sorted(set(times(doubled))) == sound
    simulator.control.add_fault("unsorted_rows", times=1)
    mixed = times(page(http, **SMALL))
    assert mixed != sound
    assert sorted(mixed) == sound


def test_fields_that_are_missing(simulator: SimulatorThread, http: httpx.Client) -> None:
    simulator.control.add_fault("missing_fields", times=1)
    assert set(page(http, **SMALL)["results"][0]) == {"v", "o", "c", "h", "l", "t"}
    simulator.control.add_fault("missing_fields", fields=["c"], times=1)
    assert "c" not in page(http, **SMALL)["results"][5]


@pytest.mark.parametrize(
    ("fault", "spoiled"),
    [
        ("negative_price", lambda row: row["l"] < 0),
        ("high_below_low", lambda row: row["h"] < row["l"]),
        ("wrong_types", lambda row: isinstance(row["c"], str) and row["o"] is None),
    ],
)
def test_one_row_is_implausible(simulator: SimulatorThread, http: httpx.Client, fault: str, spoiled: Any) -> None:
    sound = page(http, **SMALL)["results"]
    simulator.control.add_fault(fault, times=1)
    rows = page(http, **SMALL)["results"]
    assert [spoiled(row) for row in rows].count(True) == 1
    assert sum(a != b for a, b in zip(rows, sound, strict=True)) == 1


def test_a_fault_strikes_only_what_it_matches(simulator: SimulatorThread, http: httpx.Client) -> None:
    simulator.control.add_fault("server_error", ticker="C:EUR.*|AAPL")
    simulator.control.add_fault("forbidden", path="/range/1/day/")
    assert http.get(PATH).status_code == 200
    assert http.get(PATH.replace("GBP", "EUR")).status_code == 500
    assert http.get("/v3/quotes/C:EUR-USD", params={"limit": 1}).status_code == 500
    assert http.get(PATH.replace("minute", "day")).status_code == 403


def test_skip_times_and_the_count_of_uses(simulator: SimulatorThread, http: httpx.Client) -> None:
    number = simulator.control.add_fault("server_error", skip=2, times=2)
    assert [http.get(PATH).status_code for _ in range(6)] == [200, 200, 500, 500, 200, 200]
    (listed,) = simulator.control.faults()
    assert (listed["id"], listed["used"], listed["kind"]) == (number, 2, "server_error")
    simulator.control.clear_faults(number)
    assert simulator.control.faults() == []


def test_probability_repeats_with_its_seed(simulator: SimulatorThread, http: httpx.Client) -> None:
    def run(seed: int) -> list[int]:
        number = simulator.control.add_fault("not_found", probability=0.4, seed=seed)
        statuses = [http.get("/v1/marketstatus/now").status_code for _ in range(40)]
        simulator.control.clear_faults(number)
        return statuses

    first = run(1)
    assert first == run(1)
    assert first != run(2)
    assert 5 < first.count(404) < 30


@pytest.mark.parametrize(
    "options", [{"kind": "earthquake"}, {"kind": "slow", "dealy": 1}, {"kind": "slow", "path": "("}]
)
def test_a_senseless_fault_is_refused(simulator: SimulatorThread, options: dict[str, Any]) -> None:
    with pytest.raises(ControlError):
        simulator.control.add_fault(**options)
    assert simulator.control.faults() == []

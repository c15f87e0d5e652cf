"""Plans, keys, and the journal of requests."""

from __future__ import annotations

import time

import httpx
import pytest

from market_pipeline.simulator.client import ControlError
from market_pipeline.simulator.plans import Plan, Plans
from market_pipeline.simulator.server import SimulatorThread

NOW = "/v1/marketstatus/now"


def test_the_free_plan_allows_five_a_minute(simulator: SimulatorThread, http: httpx.Client) -> None:
    simulator.control.set_plan("free")
    answers = [http.get(NOW) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert answers[-1].json()["status"] == "ERROR"
    assert answers[-1].json()["error"].startswith("You've exceeded the maximum requests per minute")
    simulator.control.set_plan("unlimited")
    assert http.get(NOW).status_code == 200


def test_the_minute_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    plans = Plans("k", Plan(requests_per_minute=2))
    spent = []
    for step in (0, 30, 1, 28, 1, 1, 30):
        clock[0] += step
        spent.append(plans.spend("default"))
    # At 0 and 30 s; refused at 31 and 59; at 60 the first has left, so one more; refused; at 91 the second has left.
    assert spent == [True, True, False, False, True, False, True]


def test_keys_have_plans_of_their_own(simulator: SimulatorThread, http: httpx.Client) -> None:
    name, key = simulator.control.add_key(Plan(name="one", requests_per_minute=1, markets=["forex"]))
    other = {"Authorization": f"Bearer {key}"}
    path = "/v2/aggs/ticker/{}/range/1/day/2023-01-03/2023-01-04"
    assert http.get(path.format("C:EURUSD"), headers=other).status_code == 200
    assert http.get(path.format("C:EURUSD"), headers=other).status_code == 429
    assert http.get(path.format("C:EURUSD")).status_code == 200
    simulator.control.set_plan(Plan(markets=["forex"]), key=name)
    refused = http.get(path.format("AAPL"), headers=other)
    assert refused.status_code == 403
    assert refused.json()["status"] == "NOT_AUTHORIZED"
    assert refused.json()["message"].startswith("You are not entitled")
    with pytest.raises(ControlError, match="no key"):
        simulator.control.set_plan("free", key="stranger")


def test_the_journal_knows_what_was_asked_and_no_key(simulator: SimulatorThread, http: httpx.Client) -> None:
    http.get("/v2/aggs/ticker/C:USDCHF/range/5/minute/2023-01-03/2023-01-04", params={"apiKey": "not-the-key"})
    http.get(NOW, headers={"Authorization": "Bearer wrong"})
    http.get("/nowhere")
    first, second, third = simulator.control.requests()
    assert (first.key, first.kind, first.ticker, first.start, first.end) == (
        "default",
        "aggregates",
        "C:USDCHF",
        "2023-01-03",
        "2023-01-04",
    )
    assert (first.multiplier, first.timespan, first.status, first.cursor, first.faults) == (
        "5",
        "minute",
        200,
        False,
        [],
    )
    assert first.rows == 576
    assert abs(first.at - time.time()) < 60
    assert (second.key, second.status, third.status, third.kind) == (None, 401, 404, "unknown")
    assert simulator.control.requests(status=401) == [second]
    everything = repr(simulator.control.requests()) + repr(simulator.control.stats())
    assert simulator.api_key not in everything
    assert "not-the-key" not in everything
    assert simulator.control.stats() == {
        "requests": 3,
        "rows": 576,
        "by_key": {"default": {"aggregates": 1}, "unknown": {"market_status": 1, "unknown": 1}},
        "by_status": {"200": 1, "401": 1, "404": 1},
    }
    simulator.control.clear_requests()
    assert simulator.control.requests() == []

"""What the vendor shows: deviations from the truth, its clock, the running minute, bars that have not settled."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from market_pipeline.simulator import truth
from market_pipeline.simulator.aggregate import fold
from market_pipeline.simulator.sessions import MINUTE_MS
from market_pipeline.simulator.state import VendorState

TICKER = "X:ETHUSD"  # has a bar in every minute
START = truth.to_ms(datetime(2024, 3, 5, 10, tzinfo=UTC))
END = START + 60 * MINUTE_MS


@pytest.fixture
def state() -> VendorState:
    return VendorState()


def at(minute: int) -> int:
    return START + minute * MINUTE_MS


def test_without_deviations_it_is_the_truth(state: VendorState) -> None:
    assert state.minutes(TICKER, START, END).to_frame().equals(truth.minute_bars(TICKER, START, END).to_frame())


def test_a_restated_minute_has_the_new_values_only_where_named(state: VendorState) -> None:
    before = state.minutes(TICKER, START, END)
    state.restate(TICKER, at(7), {"close": before.close[7] + 1, "high": before.high[7] + 2})
    after = state.minutes(TICKER, START, END)
    assert after.close[7] == before.close[7] + 1
    assert after.high[7] == before.high[7] + 2
    assert after.open[7] == before.open[7]
    others = np.arange(60) != 7
    assert after.take(others).to_frame().equals(before.take(others).to_frame())
    assert fold(after, 1, "hour", "crypto").high[0] >= after.high[7]
    state.restore(TICKER, START, END)
    assert state.minutes(TICKER, START, END).to_frame().equals(before.to_frame())


def test_a_restated_minute_that_had_no_bar_appears(state: VendorState) -> None:
    saturday = truth.to_ms(datetime(2024, 3, 9, 10, tzinfo=UTC))
    with pytest.raises(ValueError, match="no bar"):
        state.restate("C:GBPUSD", saturday, {"close": 1.3})
    state.restate("C:GBPUSD", saturday, {"open": 1.3, "high": 1.32, "low": 1.29, "close": 1.31})
    shown = state.minutes("C:GBPUSD", saturday - MINUTE_MS, saturday + MINUTE_MS)
    assert shown.ts.tolist() == [saturday]
    assert (shown.low[0], shown.close[0], shown.trades[0]) == (1.29, 1.31, 4)


@pytest.mark.parametrize(
    ("minute", "values"), [(30_000, {"close": 1.0}), (0, {}), (0, {"closing": 1.0})], ids=["within", "none", "unknown"]
)
def test_a_senseless_restatement_is_refused(state: VendorState, minute: int, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="open of a minute"):
        state.restate(TICKER, START + minute, values)


def test_withdrawn_bars_are_gone_and_their_ticks_stay(state: VendorState) -> None:
    state.withdraw(TICKER, at(3), at(5))
    assert len(state.minutes(TICKER, START, END)) == 58
    assert not np.isin([at(3), at(4)], state.minutes(TICKER, START, END).ts).any()
    assert len(state.ticks(TICKER, at(3), at(5))) > 0
    state.restore(TICKER, at(4), at(5))
    assert state.minutes(TICKER, at(3), at(6)).ts.tolist() == [at(4), at(5)]


def test_removed_minutes_have_no_ticks_either(state: VendorState) -> None:
    state.remove(TICKER, at(3), at(5))
    assert len(state.minutes(TICKER, at(3), at(5))) == 0
    assert len(state.seconds(TICKER, at(3), at(5))) == 0
    assert len(state.ticks(TICKER, at(3), at(5))) == 0
    assert len(state.ticks(TICKER, at(5), at(6))) > 0


def test_the_running_minute_grows_until_it_is_the_truth(state: VendorState) -> None:
    full = truth.minute_bars(TICKER, at(10), at(11))
    counts = []
    for second in (5, 20, 40, 59):
        state.set_now(at(10) + second * 1_000)
        shown = state.minutes(TICKER, at(9), END)
        assert shown.ts[0] == at(9)
        assert shown.take(slice(0, 1)).to_frame().equals(truth.minute_bars(TICKER, at(9), at(10)).to_frame())
        assert len(shown) == 2
        assert shown.open[1] == full.open[0]
        assert full.low[0] <= shown.low[1] <= shown.high[1] <= full.high[0]
        counts.append(int(shown.trades[1]))
        assert fold(state.seconds(TICKER, at(10), END), 1, "minute", "crypto").trades[0] == counts[-1]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] <= full.trades[0]
    state.set_now(at(11))
    assert state.minutes(TICKER, at(10), at(11)).to_frame().equals(full.to_frame())


def test_before_its_first_tick_a_running_minute_has_no_bar(state: VendorState) -> None:
    first = int(state.ticks(TICKER, at(10), at(11)).ts[0])
    state.set_now(first - 1)
    assert len(state.minutes(TICKER, at(10), at(11))) == 0
    state.set_now(first)
    assert state.minutes(TICKER, at(10), at(11)).trades.tolist() == [1]


def test_a_clock_can_run_on(state: VendorState) -> None:
    state.set_now(at(0), running=True)
    threading.Event().wait(0.05)
    assert at(0) + 40 <= state.now_ms() < at(0) + 5_000
    state.set_now(None)
    assert state.now_ms() > truth.to_ms(datetime(2025, 1, 1, tzinfo=UTC))


def test_unsettled_bars_change_for_five_minutes(state: VendorState) -> None:
    state.set_settle(1.0)
    state.set_now(at(20))
    full, shown = truth.minute_bars(TICKER, at(0), at(20)), state.minutes(TICKER, at(0), at(20))
    assert shown.ts.tolist() == full.ts.tolist()
    assert np.array_equal(shown.trades[:15], full.trades[:15])
    assert np.array_equal(shown.trades[15:], full.trades[15:] - 1)
    assert (shown.volume[15:] < full.volume[15:]).all()
    assert (shown.high[15:] <= full.high[15:]).all()
    state.set_now(at(25))
    assert state.minutes(TICKER, at(0), at(20)).to_frame().equals(full.to_frame())


def test_unknown_tickers(state: VendorState) -> None:
    assert state.knows("AAPL")
    assert not state.knows("C:ZZZUSD")
    state.set_unknown(["AAPL"])
    assert not state.knows("AAPL")
    with pytest.raises(KeyError):
        state.withdraw("nothing", 0, 1)


def test_overlays_outlive_the_process(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    first = VendorState(path=file)
    first.restate(TICKER, at(1), {"close": 5.0, "trades": 9})
    first.withdraw(TICKER, at(2), at(3))
    first.remove(TICKER, at(4), at(6))
    first.set_unknown(["IBM"])
    second = VendorState(path=file)
    assert second.minutes(TICKER, START, END).to_frame().equals(first.minutes(TICKER, START, END).to_frame())
    assert second.minutes(TICKER, at(1), at(2)).close.tolist() == [5.0]
    assert not second.knows("IBM")
    second.reset()
    assert len(VendorState(path=file).minutes(TICKER, START, END)) == 60

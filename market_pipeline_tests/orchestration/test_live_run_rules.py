"""Which live run lives, which is dead, and when the next one is launched."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.orchestration.live.rules import STALE_S, LiveRun, SensorState, decide

NOW = 1_000_000.0
LOOKING = SensorState(launches=3, looked=NOW - 5)


def started(run_id: str = "a", *, beat: float | None = NOW - 2, since: float = NOW - 600) -> LiveRun:
    return LiveRun(run_id, "STARTED", started=since, beat=beat)


def failed(lived: float, ago: float) -> LiveRun:
    return LiveRun("f", "FAILURE", started=NOW - ago - lived, ended=NOW - ago)


def test_where_nothing_runs_one_run_is_launched_and_counted() -> None:
    decision = decide([], [], LOOKING, NOW)
    assert decision.launch
    assert decision.state.launches == 4


def test_a_run_that_beats_is_left_alone() -> None:
    decision = decide([started()], [], LOOKING, NOW)
    assert (decision.launch, decision.dead) == (False, ())
    assert "2 s ago" in decision.reason


def test_a_run_on_its_way_is_waited_for() -> None:
    for status in ("QUEUED", "NOT_STARTED", "STARTING", "CANCELING"):
        assert not decide([LiveRun("a", status)], [], LOOKING, NOW).launch


def test_a_silent_run_is_declared_dead_and_replaced_in_the_same_look() -> None:
    decision = decide([started(beat=NOW - STALE_S - 1)], [], LOOKING, NOW)
    assert decision.dead == ("a",)
    assert decision.launch


def test_a_run_that_never_beat_is_measured_from_its_start() -> None:
    assert decide([started(beat=None, since=NOW - 10)], [], LOOKING, NOW).dead == ()
    assert decide([started(beat=None, since=NOW - 30)], [], LOOKING, NOW).dead == ("a",)


def test_beats_missed_while_the_storage_was_down_do_not_count() -> None:
    away = SensorState(launches=1, looked=NOW - 300)
    silent = started(beat=NOW - 290)
    first = decide([silent], [], away, NOW)
    assert (first.dead, first.launch) == ((), False)
    later = decide([silent], [], first.state, NOW + 5)
    assert later.dead == ()
    # looked without a break for more than 20 s, and still no beat: it is dead indeed
    state = later.state
    for second in range(10, 26, 5):
        decision = decide([silent], [], state, NOW + second)
        state = decision.state
    assert decision.dead == ("a",)


def test_a_short_outage_between_two_looks_does_not_make_a_run_dead() -> None:
    # The last beat came just before the storage went away for 15 s; both were told at the same moment that it is back.
    last = decide([started(beat=NOW - 4.9)], [], LOOKING, NOW)
    back = decide([started(beat=NOW - 4.9)], [], last.state, NOW + 15.5)
    assert (back.dead, back.launch) == ((), False)
    again = decide([started(beat=NOW + 18.7)], [], back.state, NOW + 21)
    assert (again.dead, again.launch) == ((), False)


def test_a_sensor_that_looks_seldom_finds_a_dead_run_all_the_same() -> None:
    state, silent = LOOKING, started(beat=NOW - 2)
    for look in range(3):  # a busy machine: each look takes its time
        decision = decide([silent], [], state, NOW + look * 25)
        state = decision.state
    assert decision.dead == ("a",)


def test_a_beat_ends_the_silence() -> None:
    state = LOOKING
    for look in range(20):
        decision = decide([started(beat=NOW + look * 9 - 4)], [], state, NOW + look * 9)
        assert decision.dead == ()
        state = decision.state


def test_runs_that_fall_at_once_are_followed_by_longer_and_longer_pauses() -> None:
    assert decide([], [failed(5, 1)], LOOKING, NOW).launch
    assert not decide([], [failed(5, 1), failed(5, 30)], LOOKING, NOW).launch
    assert decide([], [failed(5, 16), failed(5, 60)], LOOKING, NOW).launch
    many = [failed(5, 250), *(failed(5, 400 + n) for n in range(7))]
    decision = decide([], many, LOOKING, NOW)
    assert not decision.launch
    assert "50 s" in decision.reason
    assert decide([], [failed(3600, 1), failed(5, 30)], LOOKING, NOW).launch


def test_a_cursor_of_another_version_begins_anew() -> None:
    assert SensorState.read('{"other": 1}') == SensorState()
    assert SensorState.read("nonsense") == SensorState()
    assert SensorState.read('{"silences": {"a": 7}}') == SensorState()
    state = decide([started()], [], LOOKING, NOW).state
    assert state.silences
    assert SensorState.read(state.text()) == state


@given(
    st.lists(
        st.builds(
            LiveRun,
            run_id=st.uuids().map(str),
            status=st.sampled_from(["QUEUED", "STARTING", "STARTED", "CANCELING"]),
            started=st.none() | st.floats(NOW - 1000, NOW),
            beat=st.none() | st.floats(NOW - 1000, NOW),
        ),
        max_size=4,
    )
)
def test_never_two(running: list[LiveRun]) -> None:
    decision = decide(running, [], LOOKING, NOW)
    assert decision.launch == (len(decision.dead) == len(running))

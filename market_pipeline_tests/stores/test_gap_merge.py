"""What the gap ledger must say after a look: minute by minute, for any history of looks."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.stores.gap_merge import (
    CONFIRMED,
    GIVEN_UP,
    MINUTE,
    OPEN,
    REPAIRED,
    Changes,
    Failure,
    Gap,
    Look,
    fail,
    reconcile,
)
from market_pipeline_tests.stores.frames import START

NOW = START + timedelta(days=30)


def at(minute: int) -> datetime:
    return START + minute * MINUTE


def gap(first: int, last: int, **changed: object) -> Gap:
    given: dict[str, object] = {"cause": "not_loaded", "first_seen": NOW, **changed}
    return Gap("EURUSD", at(first), at(last), **given)  # type: ignore[arg-type]


def look(first: int, last: int, missing: list[tuple[int, int]], old: list[Gap], **changed: object) -> Changes:
    seen = Look(at(first), at(last), NOW, **changed)  # type: ignore[arg-type]
    return reconcile("EURUSD", old, [(at(a), at(b)) for a, b in missing], seen)


def applied(ledger: dict[datetime, Gap], changes: Changes, version: int) -> dict[datetime, Gap]:
    """Do to a ledger what ReplacingMergeTree does: rows go by their start, the later one replaces."""
    kept = dict(ledger)
    for withdrawn in changes.withdraw:
        del kept[withdrawn.start]
    for written in changes.write:
        kept[written.start] = replace(written, version=version)
    return kept


def minutes_of(gaps: list[Gap]) -> dict[int, Gap]:
    """Return the gap of each minute; no minute may lie in two."""
    out: dict[int, Gap] = {}
    for one in gaps:
        assert one.minutes > 0
        for i in range(one.minutes):
            minute = (one.start - START) // MINUTE + i
            assert minute not in out, "two standing gaps overlap"
            out[minute] = one
    return out


def test_new_minutes_are_open_gaps() -> None:
    changes = look(0, 100, [(10, 20), (30, 31)], [])
    assert changes == Changes([gap(10, 20), gap(30, 31)], [])
    assert [each.minutes for each in changes.write] == [10, 1]


def test_nothing_new_writes_nothing() -> None:
    old = [gap(10, 20, attempts=1), gap(30, 31)]
    assert look(0, 100, [(10, 20), (30, 31)], old) == Changes()
    assert look(40, 100, [], old) == Changes()


def test_a_part_that_came_is_repaired_and_the_rest_keeps_its_attempts() -> None:
    old = [gap(10, 20, attempts=1)]
    changes = look(0, 100, [(10, 12), (15, 20)], old)
    assert changes.write == [gap(10, 12, attempts=1), gap(12, 15, attempts=1, state=REPAIRED), gap(15, 20, attempts=1)]
    assert changes.withdraw == []


def test_a_gap_that_grows_backwards_moves_its_start() -> None:
    old = [gap(10, 20)]
    changes = look(0, 100, [(5, 20)], old)
    assert changes.write == [gap(5, 20)]
    assert changes.withdraw == old


def test_older_minutes_beside_new_ones_keep_apart_when_their_attempts_differ() -> None:
    changes = look(0, 100, [(5, 20)], [gap(10, 20, attempts=1)])
    assert changes.write == [gap(5, 10)]
    assert changes.withdraw == []


def test_the_part_beyond_the_look_stays_as_it_was() -> None:
    old = [gap(10, 90, attempts=1)]
    assert look(40, 50, [(40, 50)], old) == Changes()
    changes = look(40, 50, [], old)
    assert changes.write == [gap(10, 40, attempts=1), gap(40, 50, attempts=1, state=REPAIRED), gap(50, 90, attempts=1)]


def test_asking_counts_attempts_until_the_vendor_has_confirmed() -> None:
    asked = NOW + timedelta(hours=1)
    (once,) = look(0, 100, [(10, 20)], [], asked_at=asked).write
    assert (once.state, once.cause, once.attempts, once.last_attempt) == (OPEN, "not_loaded", 1, asked)
    (twice,) = look(0, 100, [(10, 20)], [once], asked_at=asked).write
    assert (twice.state, twice.cause, twice.attempts) == (CONFIRMED, "vendor_missing", 2)
    assert look(0, 100, [(10, 20)], [twice], asked_at=asked) == Changes()
    (thrice,) = look(0, 100, [(10, 20)], [once], asked_at=asked, attempts_to_confirm=3).write
    assert thrice.state == OPEN


def test_asking_for_a_part_counts_for_that_part() -> None:
    changes = look(12, 15, [(12, 15)], [gap(10, 20)], asked_at=NOW)
    assert [(each.attempts, each.minutes) for each in changes.write] == [(0, 2), (1, 3), (0, 5)]


def test_a_better_cause_replaces_a_worse_one() -> None:
    old = [gap(10, 20, cause="lost")]
    assert look(0, 100, [(10, 20)], old) == Changes()
    assert look(0, 100, [(10, 20)], [gap(10, 20)], cause="lost").write == [gap(10, 20, cause="lost")]
    assert look(0, 100, [(10, 20)], [gap(10, 20, cause="pending_settle")]).write == [gap(10, 20)]
    confirmed = [gap(10, 20, cause="vendor_missing", state=CONFIRMED, attempts=2)]
    assert look(0, 100, [(10, 20)], confirmed, cause="lost") == Changes()


def test_runs_bring_their_causes_and_lost_stays_lost() -> None:
    seen = Look(at(0), at(100), NOW)
    runs = [(at(5), at(12)), (at(12), at(14)), (at(30), at(40))]
    old = [gap(10, 13, cause="lost", attempts=1), gap(30, 35, cause="pending_settle")]
    changes = reconcile("EURUSD", old, runs, seen, ["not_loaded", "pending_settle", "pending_settle"])
    assert [(g.start, g.end, g.cause, g.attempts) for g in changes.write] == [
        (at(5), at(10), "not_loaded", 0),
        (at(13), at(14), "pending_settle", 0),
        (at(30), at(40), "pending_settle", 0),
    ]
    with pytest.raises(ValueError):
        reconcile("EURUSD", [], runs, seen, ["lost"])


def test_a_confirmed_minute_that_comes_after_all_is_repaired() -> None:
    confirmed = gap(10, 20, cause="vendor_missing", state=CONFIRMED, attempts=2)
    assert look(0, 100, [], [confirmed]).write == [replace(confirmed, state=REPAIRED)]


def test_gaps_that_overlap_after_two_writers_are_put_right() -> None:
    old = [gap(10, 30, attempts=1, version=1), gap(20, 40, version=2)]
    changes = look(0, 100, [(10, 40)], old)
    assert changes.write == [gap(30, 40, version=2)]
    assert changes.withdraw == [old[1]]


SPAN = 60
MINUTES = st.sets(st.integers(0, SPAN - 1), max_size=SPAN)
LOOKS = st.lists(
    st.tuples(
        st.integers(0, SPAN), st.integers(0, SPAN), MINUTES, st.booleans(), st.sampled_from(["not_loaded", "lost"])
    ),
    min_size=1,
    max_size=6,
)


def runs(minutes: set[int]) -> list[tuple[int, int]]:
    ordered = sorted(minutes)
    starts = [m for m in ordered if m - 1 not in minutes]
    return [(m, next(n for n in range(m, SPAN + 2) if n not in minutes)) for m in starts]


@settings(max_examples=300, deadline=None)
@given(LOOKS)
def test_any_history_of_looks(history: list[tuple[int, int, set[int], bool, str]]) -> None:
    ledger: dict[datetime, Gap] = {}
    truth: dict[int, int] = {}  # missing minute -> attempts, counted one minute at a time
    for version, (first, last, missing, asked, cause) in enumerate(history, 1):
        first, last = sorted((first, last + 1))
        inside = set(range(first, last))
        for minute in inside:
            if minute not in missing:
                truth.pop(minute, None)
            else:
                attempts = truth.get(minute, 0)
                truth[minute] = attempts + 1 if asked and attempts < 2 else attempts
        standing = [g for g in ledger.values() if g.standing and g.start < at(last) and g.end > at(first)]
        before = minutes_of([g for g in ledger.values() if g.standing])
        changes = look(first, last, runs(missing & inside), standing, asked_at=NOW if asked else None, cause=cause)
        ledger = applied(ledger, changes, version)
        after = minutes_of([g for g in ledger.values() if g.standing])
        assert {minute: one.attempts for minute, one in after.items()} == truth
        for minute, one in after.items():
            assert (one.state == CONFIRMED) == (one.attempts >= 2)
            assert one.cause == "vendor_missing" if one.state == CONFIRMED else one.cause in {"not_loaded", "lost"}
            if minute not in inside:
                was = before[minute]
                assert (one.cause, one.state, one.attempts) == (was.cause, was.state, was.attempts)
        again = [g for g in ledger.values() if g.standing and g.start < at(last) and g.end > at(first)]
        assert look(first, last, runs(missing & inside), again) == Changes(), "the same look again changes nothing"


def failed(first: int, last: int, old: list[Gap], most: int = 2) -> Changes:
    return fail(old, Failure(at(first), at(last), NOW + MINUTE, "away", most))


def test_a_failure_counts_for_the_part_of_a_gap_that_was_asked_for() -> None:
    changes = failed(10, 15, [gap(5, 20, attempts=1), gap(12, 13, state=REPAIRED), gap(30, 40)])
    tried = gap(10, 15, attempts=1, failures=1, last_attempt=NOW + MINUTE, note="away")
    assert changes == Changes([gap(5, 10, attempts=1), tried, gap(15, 20, attempts=1)], [])


def test_after_so_many_failures_a_gap_is_given_up_and_a_confirmed_one_never() -> None:
    changes = failed(0, 20, [gap(5, 10, failures=1), gap(10, 12, state=CONFIRMED, attempts=2), gap(12, 15)])
    assert [(each.start, each.state, each.failures) for each in changes.write] == [
        (at(5), GIVEN_UP, 2),
        (at(12), OPEN, 1),
    ]
    again = failed(0, 20, [replace(changes.write[0], version=3)])
    assert [(each.state, each.failures) for each in again.write] == [(GIVEN_UP, 3)], "asked again because told to"


def test_what_was_given_up_stays_so_until_the_vendor_answers_or_its_minutes_come() -> None:
    old = [gap(5, 10, state=GIVEN_UP, failures=2, note="away")]
    assert look(0, 100, [(5, 10)], old) == Changes([], [])
    answered = look(0, 100, [(5, 10)], old, asked_at=NOW)
    assert answered.write == [gap(5, 10, attempts=1, last_attempt=NOW)]
    assert [each.state for each in look(0, 100, [], old).write] == [REPAIRED]

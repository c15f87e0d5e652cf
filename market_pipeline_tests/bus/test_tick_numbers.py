"""Numbers of batches: whatever is lost on the way is noticed, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.bus.spooling_ticks import _covered, _loss_of
from market_pipeline.bus.tick_envelope import LOSS_MARGIN, TickHeaders
from market_pipeline.bus.tick_numbers import BatchNumbers, Numbered

T0 = datetime(2026, 3, 2, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MS = timedelta(milliseconds=1)


def sent(terms: list[int], rows: list[bool]) -> list[TickHeaders]:
    """Return what collectors, one after another, publish: so many batches each, one a second, some of them empty."""
    batches, quiet = [], iter(rows)
    for epoch, count in enumerate(terms, start=1):
        for number in range(1, count + 1):
            at = T0 + len(batches) * SECOND
            first = None if next(quiet, False) else at - SECOND + MS
            batches.append(
                TickHeaders(
                    batch_id=len(batches) + 1,
                    correlation_id="c",
                    symbol="A",
                    collector_id="c",
                    epoch=epoch,
                    rows=0 if first is None else 1,
                    session_id=f"{epoch}.{number // 3}",
                    session_started=T0,
                    alive_at=at,
                    first_ts=first,
                    last_ts=None if first is None else at,
                    number=number,
                )
            )
    return batches


def holes(batches: list[TickHeaders], restart_at: int = -1) -> list[tuple[datetime, datetime]]:
    numbers, found = BatchNumbers(), []
    for place, headers in enumerate(batches):
        if place == restart_at:
            kept = msgspec.json.decode(msgspec.json.encode(numbers.last), type=dict[str, Numbered])
            numbers = BatchNumbers(kept)
        if (missed := numbers.missed(TickHeaders.from_nats(headers.to_nats()))) is not None:
            found.append(missed)
    return found


terms = st.lists(st.integers(1, 12), min_size=1, max_size=3)
quiet = st.lists(st.booleans(), max_size=36)


@given(terms, quiet, st.sets(st.integers(0, 35), max_size=6), st.data())
def test_every_batch_that_is_lost_is_told_and_nothing_else(
    counts: list[int], rows: list[bool], lost: set[int], data: st.DataObject
) -> None:
    every = sent(counts, rows)
    came = [headers for place, headers in enumerate(every) if place not in lost]
    found = holes(came, data.draw(st.integers(0, len(every))))
    noticed = [
        each
        for place, each in enumerate(every)
        if place in lost
        # the reader knew what went before, and there is one that comes after it of the same term
        and any(before.batch_id < each.batch_id for before in came)
        and any(after.epoch == each.epoch and after.number > each.number for after in came)
    ]
    for each in noticed:
        assert any(start <= (each.first_ts or each.alive_at) and each.alive_at < end for start, end in found)
    assert bool(found) == bool(noticed)
    assert all(start < end for start, end in found)
    # what was published and comes once more: a part of a spool that was drained twice, or words of a lost lease
    if came:
        begin = data.draw(st.integers(0, len(came) - 1))
        end = data.draw(st.integers(begin, len(came) - 1))
        again = [*came[: end + 1], *came[begin : end + 1], *came[end + 1 :]]
        assert holes(again) == holes(came)


@given(terms, quiet, st.integers(0, 35), st.integers(0, 35))
def test_what_is_published_in_place_of_others_stands_for_their_numbers(
    counts: list[int], rows: list[bool], begin: int, count: int
) -> None:
    every = sent(counts, rows)
    given_up = every[begin : begin + count + 1]
    if not given_up:
        return
    told = _loss_of(given_up)
    assert (told is None) == all(each.heartbeat for each in given_up)
    instead = replace(told or given_up[-1], covers=_covered(given_up))
    found = holes([*every[:begin], instead, *every[begin + count + 1 :]])
    if begin and any(each.number == 1 for each in given_up) and instead.lost_from is not None:
        # That a collector's first session reached back to its predecessor's last word went with its first batch.
        between = (every[begin - 1].alive_at - LOSS_MARGIN, instead.lost_from)
        assert found in ([], [between])
    else:
        assert found == []


def test_the_time_of_a_loss_reaches_from_the_last_sign_of_life_to_the_next_tick() -> None:
    one, two, three = sent([3], [])
    numbers = BatchNumbers()
    assert (numbers.missed(one), numbers.missed(three)) == (None, (T0 - LOSS_MARGIN, three.first_ts + LOSS_MARGIN))  # type: ignore[operator]
    assert numbers.missed(two) is None, "it was late, and is not lost twice"


@pytest.mark.parametrize("uncounted", [0, 1, 2])
def test_a_producer_that_does_not_count_lacks_nothing(uncounted: int) -> None:
    every = sent([3, 3, 3], [])
    mixed = [replace(each, number=0) if each.epoch == uncounted + 1 else each for each in every]
    assert holes(mixed) == []
    assert "No" not in replace(every[0], number=0).to_nats()


def test_what_is_forgotten_is_told_otherwise() -> None:
    every = sent([5], [])
    numbers = BatchNumbers()
    numbers.missed(every[0])
    numbers.forget(["A", "B"])
    assert numbers.missed(every[3]) is None
    assert BatchNumbers().begins_later(every[3])
    assert not BatchNumbers().begins_later(every[0])
    assert not numbers.begins_later(every[4])


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(
    ("lost_from", "expected"),
    [
        (None, [(T0 - LOSS_MARGIN, T0 + 60 * SECOND)]),  # it found nothing in a stream that had been wiped
        (T0 + 20 * SECOND, [(T0 - LOSS_MARGIN, T0 + 20 * SECOND)]),
        (T0 - SECOND, []),  # it says so itself
    ],
)
def test_nobody_answers_for_the_time_between_two_collectors(
    lost_from: datetime | None, expected: list[tuple[datetime, datetime]], restarted: bool
) -> None:
    before, after = sent([1, 1], [])
    after = replace(after, session_started=T0 + 60 * SECOND, alive_at=T0 + 61 * SECOND, lost_from=lost_from)
    numbers = BatchNumbers()
    assert numbers.missed(before) is None
    if restarted:
        numbers.forget(["A"])  # any number may come next, but not any time
    found = [each for each in (numbers.missed(after), numbers.missed(replace(after, number=2))) if each is not None]
    assert found == expected

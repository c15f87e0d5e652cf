"""The format of segments: whatever happens to the bytes, what is whole is read and what is not is named."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.bus.spool.record import SEGMENT_HEAD, SpoolRecord, encode_record, scan
from market_pipeline_tests.bus.spool.records import SALT, record, records, segment


@given(records)
def test_what_is_written_is_read(written: list[SpoolRecord]) -> None:
    found = scan(segment(written))
    assert (list(found.records), found.damaged, found.torn_at) == (written, (), None)


@given(records, st.data())
def test_cut_at_any_byte_all_whole_records_are_read_and_the_rest_is_torn(
    written: list[SpoolRecord], data: st.DataObject
) -> None:
    whole = segment(written)
    cut = data.draw(st.integers(0, len(whole)))
    ends = [SEGMENT_HEAD]
    for each in written:
        ends.append(ends[-1] + len(encode_record(each, SALT)))
    found = scan(whole[:cut])
    kept = [each for each, end in zip(written, ends[1:], strict=True) if end <= cut]
    assert list(found.records) == kept
    assert found.damaged == ()
    begin = max([0, *(end for end in ends if end <= cut)])
    assert found.torn_at == (None if begin == cut else begin)


def test_every_byte_of_a_small_segment_can_be_the_last() -> None:
    whole = segment([record(1), record(2)])
    first = SEGMENT_HEAD + len(encode_record(record(1), SALT))
    for cut in range(len(whole)):
        found = scan(whole[:cut])
        assert len(found.records) == (cut >= first)
        assert found.damaged == ()


@settings(max_examples=400)
@given(records.filter(bool), st.data())
def test_a_flipped_bit_costs_at_most_the_record_it_is_in(written: list[SpoolRecord], data: st.DataObject) -> None:
    whole = bytearray(segment(written))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    at = bit // 8
    whole[at] ^= 1 << bit % 8
    end = SEGMENT_HEAD
    hit = None
    for index, each in enumerate(written):
        end += len(encode_record(each, SALT))
        if SEGMENT_HEAD <= at < end:
            hit = index
            break
    found = scan(bytes(whole))
    assert list(found.records) == [each for index, each in enumerate(written) if index != hit]
    # It was whole once, so it is kept for a person, and never taken for a torn end.
    assert found.torn_at is None
    assert any(region.start <= at < region.end for region in found.damaged)


@given(records, st.binary(min_size=1, max_size=80), st.data())
def test_garbage_between_records_hides_none_of_them(
    written: list[SpoolRecord], garbage: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(written)))
    body = b"".join(encode_record(each, SALT) for each in written[at:])
    found = scan(segment(written[:at]) + garbage + body)
    if at < len(written):
        assert list(found.records) == written
    assert found.damaged or found.torn_at is not None


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_an_error(garbage: bytes) -> None:
    for data in (garbage, segment([]) + garbage):
        found = scan(data)
        assert found.records == ()
        assert len(data) == 0 or found.damaged or found.torn_at is not None or data == segment([])


def test_zeros_behind_the_last_record_are_a_torn_end() -> None:
    found = scan(segment([record(1)]) + b"\0" * 5000)
    assert len(found.records) == 1
    assert (found.damaged, found.torn_at) == ((), len(segment([record(1)])))

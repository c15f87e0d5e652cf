"""Records and segments for the spool's tests."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from market_pipeline.bus.spool.record import MARKER, SpoolRecord, encode_record, segment_head

SALT = b"saltsalt"


def record(number: int, subject: str = "market.EURUSD.tick", size: int = 100) -> SpoolRecord:
    """A record that tells its number."""
    payload = b"%d:" % number
    return SpoolRecord(subject, f"id-{number}", {"N": str(number)}, payload.ljust(size, b"."), 1_700_000_000_000)


def segment(records: Sequence[SpoolRecord], salt: bytes = SALT) -> bytes:
    """The bytes of a segment."""
    return segment_head(salt) + b"".join(encode_record(each, salt) for each in records)


text = st.text(max_size=20)
# What looks most like the format itself is what could be mistaken for it.
payloads = st.one_of(
    st.binary(max_size=60),
    st.just(MARKER * 3),
    st.just(segment([record(1)], b"otherone")),
    st.just(b"\0" * 40),
)
records = st.lists(
    st.builds(
        SpoolRecord,
        subject=text,
        msg_id=text,
        headers=st.dictionaries(text, text, max_size=3),
        payload=payloads,
        spooled_ms=st.integers(0, 2**64 - 1),
    ),
    max_size=5,
)

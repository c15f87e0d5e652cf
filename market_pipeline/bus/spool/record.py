"""The format of a segment: what is written, and how much of a damaged one can still be read.

    segment   "MPSPOOL1", then twice: salt (8 random bytes), its CRC32; then records
    record    marker F5 'R' 'C' '1' (the version)
              head   u64 time (epoch ms) | u32 lengths of subject, id, headers, payload      little-endian, 24 bytes
              u32    CRC32 of the head
              u32    CRC32 of the head and the body
              body   subject, Nats-Msg-Id, headers (JSON object), payload

Both CRCs begin with the segment's salt, so that a record inside a payload is never taken for one of ours. The head has
a CRC of its own, so that a damaged body is stepped over exactly, and a length is believed before it is followed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

import msgspec

MAGIC = b"MPSPOOL1"
SALT_BYTES = 8
_SALT = struct.Struct("<8sI")
SEGMENT_HEAD = len(MAGIC) + 2 * _SALT.size
MARKER = b"\xf5RC1"
_HEAD = struct.Struct("<QIIII")
_CRCS = struct.Struct("<II")
RECORD_HEAD = len(MARKER) + _HEAD.size + _CRCS.size


@dataclass(frozen=True, slots=True)
class SpoolRecord:
    """One publication: `msg_id` is its Nats-Msg-Id (not among the headers), `spooled_ms` when it came to disk."""

    subject: str
    msg_id: str
    headers: Mapping[str, str]
    payload: bytes
    spooled_ms: int


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes [start, end) of a segment that are no record."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What a segment holds.

    records: all that are whole, in their order. damaged: regions that are not, to set aside. torn_at: where a last
    record begins that was never written to its end, so that nobody was told it is kept; None where there is none.
    """

    records: tuple[SpoolRecord, ...]
    damaged: tuple[Region, ...]
    torn_at: int | None


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a record: time, and where the record ends relative to its beginning."""

    spooled_ms: int
    lengths: tuple[int, int, int, int]
    crc: int

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return RECORD_HEAD + sum(self.lengths)


def segment_head(salt: bytes) -> bytes:
    """Return how a segment begins: with the salt twice, since without it nothing behind it could be believed."""
    return MAGIC + 2 * _SALT.pack(salt, crc32(salt))


def read_segment_head(data: bytes) -> tuple[bytes | None, bool]:
    """Return the salt, None where neither copy of it is whole, and whether all of the head is as it was written."""
    for at in (len(MAGIC), len(MAGIC) + _SALT.size):
        if len(data) >= at + _SALT.size:
            salt, crc = _SALT.unpack_from(data, at)
            if crc32(salt) == crc:
                return salt, data[:SEGMENT_HEAD] == segment_head(salt)
    return None, False


def encode_record(record: SpoolRecord, salt: bytes) -> bytes:
    """Return the bytes of a record in the segment of this salt."""
    subject, msg_id = record.subject.encode(), record.msg_id.encode()
    headers = msgspec.json.encode(dict(record.headers))
    head = _HEAD.pack(record.spooled_ms, len(subject), len(msg_id), len(headers), len(record.payload))
    head_crc = crc32(head, _seed(salt))
    body = b"".join((subject, msg_id, headers, record.payload))
    return b"".join((MARKER, head, _CRCS.pack(head_crc, crc32(body, head_crc)), body))


def read_head(data: bytes | memoryview, salt: bytes) -> Head | None:
    """Read the head of the record that begins at the first byte; None where there is none."""
    if len(data) < RECORD_HEAD or data[: len(MARKER)] != MARKER:
        return None
    head = bytes(data[len(MARKER) : len(MARKER) + _HEAD.size])
    head_crc, crc = _CRCS.unpack_from(data, len(MARKER) + _HEAD.size)
    if crc32(head, _seed(salt)) != head_crc:
        return None
    spooled_ms, *lengths = _HEAD.unpack(head)
    return Head(spooled_ms, (lengths[0], lengths[1], lengths[2], lengths[3]), crc)


def scan(data: bytes) -> Scan:
    """Read a segment: every whole record before and after damage, and what the damage is."""
    if len(data) < SEGMENT_HEAD:
        return Scan((), (), 0 if data else None)  # a crash while it was begun: there was no record yet
    salt, whole = read_segment_head(data)
    if salt is None:
        return Scan((), (Region(0, len(data)),), None)
    records: list[SpoolRecord] = []
    damaged: list[Region] = [] if whole else [Region(0, SEGMENT_HEAD)]
    at = SEGMENT_HEAD
    while at < len(data):
        head = read_head(memoryview(data)[at : at + RECORD_HEAD], salt)
        if head is not None and at + head.size <= len(data):
            record = _read_body(data, at, head, salt)
            if record is not None:
                records.append(record)
            else:
                damaged.append(Region(at, at + head.size))
            at += head.size
            continue
        following = _next_record(data, at + 1, salt)
        if following is not None:
            damaged.append(Region(at, following))
            at = following
            continue
        if _torn(data, at, head):
            return Scan(tuple(records), tuple(damaged), at)
        damaged.append(Region(at, len(data)))
        break
    return Scan(tuple(records), tuple(damaged), None)


def _seed(salt: bytes) -> int:
    return crc32(salt)


def _read_body(data: bytes, at: int, head: Head, salt: bytes) -> SpoolRecord | None:
    body = memoryview(data)[at + RECORD_HEAD : at + head.size]
    head_crc, _ = _CRCS.unpack_from(data, at + len(MARKER) + _HEAD.size)
    if crc32(body, head_crc) != head.crc:
        return None
    subject, msg_id, headers, payload = head.lengths
    try:
        return SpoolRecord(
            subject=str(body[:subject], "utf-8"),
            msg_id=str(body[subject : subject + msg_id], "utf-8"),
            headers=msgspec.json.decode(body[subject + msg_id : subject + msg_id + headers], type=dict[str, str]),
            payload=bytes(body[len(body) - payload :]),
            spooled_ms=head.spooled_ms,
        )
    except (UnicodeDecodeError, msgspec.MsgspecError):
        return None


def _next_record(data: bytes, start: int, salt: bytes) -> int | None:
    """Find where the next head stands that is one: the lengths before it can't be believed."""
    while (start := data.find(MARKER, start)) >= 0:
        if read_head(memoryview(data)[start : start + RECORD_HEAD], salt) is not None:
            return start
        start += 1
    return None


def _torn(data: bytes, at: int, head: Head | None) -> bool:
    """Say whether the rest is the beginning of a record: not its end, as a crash in the middle of a write leaves it.

    A crash of the whole machine may leave zeros where the data of a longer file should be. Anything else was whole
    once, so somebody may rely on it: that is damage.
    """
    if head is not None:
        return True
    rest = data[at:]
    begun = len(rest) < RECORD_HEAD and MARKER.startswith(rest[: len(MARKER)])
    return begun or not rest.strip(b"\0")

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable

import brotli
import lz4.frame
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from market_pipeline.local.clickhouse.bodies import Body, multipart
from market_pipeline.local.clickhouse.compression import accepted_encoding, compressor, decompressor
from market_pipeline.local.clickhouse.errors import ClickHouseError, Code
from market_pipeline.local.clickhouse.workers import Workers

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "lz4": lz4.frame.compress,
    "zstd": zstd.compress,
    "br": brotli.compress,
}
ENCODINGS = st.sampled_from(sorted(COMPRESS))
PIECES = st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=6)


def body(
    pieces: list[bytes], *, encoding: str = "", limit: int = 1 << 20, patience: float = 5, length: str = ""
) -> Body:
    messages: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": i < len(pieces) - 1} for i, piece in enumerate(pieces)
    ]

    async def receive() -> Message:
        if not messages:
            await asyncio.sleep(3600)
        return messages.pop(0)

    return Body(receive, Workers(1), encoding=encoding, length=length, limit=limit, patience=patience)


@given(ENCODINGS, st.binary(min_size=1, max_size=3000), st.integers(1, 200))
def test_a_body_cut_anywhere_inflates_to_itself(encoding: str, data: bytes, step: int) -> None:
    encoded = COMPRESS[encoding](data)
    feed = decompressor(encoding)
    assert feed is not None
    pieces = [encoded[i : i + step] for i in range(0, len(encoded), step)]
    assert b"".join(feed.feed(piece, 1 << 20) for piece in pieces) == data
    assert feed.complete


@given(st.sampled_from(["gzip", "lz4", "zstd"]), PIECES, st.integers(1, 500))
def test_frames_may_follow_one_another(encoding: str, blocks: list[bytes], step: int) -> None:
    encoded = b"".join(map(COMPRESS[encoding], blocks))
    feed = decompressor(encoding)
    assert feed is not None
    pieces = [encoded[i : i + step] for i in range(0, len(encoded), step)]
    assert b"".join(feed.feed(piece, 1 << 20) for piece in pieces) == b"".join(blocks)
    assert feed.complete


@given(ENCODINGS, PIECES)
def test_what_is_compressed_piece_by_piece_inflates(encoding: str, pieces: list[bytes]) -> None:
    squeeze = compressor(encoding)
    encoded = b"".join(map(squeeze.compress, pieces)) + squeeze.flush()
    feed = decompressor(encoding)
    assert feed is not None
    assert feed.feed(encoded, 1 << 20) == b"".join(pieces)
    assert feed.complete


@pytest.mark.parametrize("encoding", sorted(COMPRESS))
async def test_a_bomb_stops_at_the_limit(encoding: str) -> None:
    with pytest.raises(ClickHouseError) as caught:
        await body([COMPRESS[encoding](bytes(8 << 20))], encoding=encoding).read_all()
    assert caught.value.code == Code.TOO_MANY_BYTES


@pytest.mark.parametrize("encoding", sorted(COMPRESS))
async def test_a_body_cut_short_is_no_body(encoding: str) -> None:
    encoded = COMPRESS[encoding](b"1\ta\n" * 1000)
    with pytest.raises(ClickHouseError) as caught:
        await body([encoded[:-3]], encoding=encoding).read_all()
    assert caught.value.code == Code.CANNOT_DECOMPRESS


async def test_plain_bodies_are_bounded_on_the_wire_and_by_their_length() -> None:
    with pytest.raises(ClickHouseError, match="limit of 10 bytes"):
        await body([b"12345678", b"9012"], limit=10).read_all()
    with pytest.raises(ClickHouseError, match="limit of 10 bytes"):
        body([b"x"], limit=10, length="11")
    assert await body([b"12345678", b"90"], limit=10, length="10").read_all() == b"1234567890"


async def test_one_piece_is_handed_on_without_a_copy() -> None:
    piece = b"x" * 100_000
    assert await body([piece]).read() is piece


async def test_a_client_that_goes_silent_does_not_hold_its_slot() -> None:
    talking, silent = body([b"a", b"b"], patience=0.05), body([], patience=0.05)
    assert await talking.read(1) == b"a"
    assert await talking.read_all() == b"b"
    with pytest.raises(ClickHouseError) as caught:
        await silent.read()
    assert caught.value.code == Code.SOCKET_TIMEOUT


@pytest.mark.parametrize(
    ("header", "choice"),
    [("gzip, lz4", "gzip"), ("zstd;q=0, br", "br"), ("bogus, LZ4 ;q=1", "lz4"), ("identity", None), ("", None)],
)
def test_accepted_encoding(header: str, choice: str | None) -> None:
    assert accepted_encoding(header) == choice


def test_unknown_encodings_are_named() -> None:
    assert decompressor("identity") is None
    with pytest.raises(ClickHouseError, match="bogus"):
        decompressor("bogus")


def test_multipart_forms_keep_binary_data() -> None:
    data = bytes(range(256)) + b"\r\n--other--\r\n"
    form = (
        b'--b1\r\nContent-Disposition: form-data; name="query"\r\n\r\nSELECT 1\r\n'
        b'--b1\r\nContent-Disposition: form-data; name="t"; filename="t.bin"\r\n\r\n' + data + b"\r\n--b1--\r\n"
    )
    query, file = multipart(form, 'multipart/form-data; boundary="b1"')
    assert (query.name, query.is_file, query.data) == ("query", False, b"SELECT 1")
    assert (file.name, file.is_file, file.data) == ("t", True, data)
    with pytest.raises(ClickHouseError, match="boundary"):
        list(multipart(form, "multipart/form-data"))

"""Splicing: one stream out of many payloads, byte for byte."""

from __future__ import annotations

import io

import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from market_pipeline import payload
from market_pipeline.errors import UnreadableBatch
from market_pipeline.market.bars import MINUTE_SOURCES
from market_pipeline.stores.arrow import END_OF_STREAM, splice
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import Client
from market_pipeline_tests.stores.frames import minutes, plain


def written_at_once(frames: list[pl.DataFrame]) -> bytes:
    """Write the frames as record batches of one stream, the way a single writer would."""
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, payload.arrow_schema(), options=options) as writer:
        for frame in frames:
            for batch in pa.ipc.open_stream(payload.encode(frame)):
                writer.write_batch(batch)
    return sink.getvalue()


def dictionary_symbols(frame: pl.DataFrame) -> bytes:
    """Encode as a foreign producer might: the symbol in a dictionary of its own."""
    table = frame.with_columns(pl.col("symbol").cast(pl.Categorical)).to_arrow(compat_level=pl.CompatLevel.oldest())
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_spliced_payloads_are_what_one_writer_would_have_written() -> None:
    frames = [minutes(500, symbol=symbol, seed=i) for i, symbol in enumerate(("EURUSD", "USDJPY", "BRK.B"))]
    assert splice([payload.encode(frame) for frame in frames]) == [written_at_once(frames)]


def test_tiny_payloads_become_one_record_batch(client: Client) -> None:
    """Each has rows of its own codes, so that a dictionary read wrongly would show."""
    rows = [
        minutes(1, symbol=f"S{number}", source=source, timeframe=code, seed=number)
        for number, (source, code) in enumerate((s, c) for s in MINUTE_SOURCES for c in ("1m", "1d", "1w"))
    ]
    (stream,) = splice([payload.encode(row) for row in rows])
    assert len(list(pa.ipc.open_stream(stream))) == 1
    assert_frame_equal(payload.decode(stream), pl.concat(rows))
    BarStore(client).insert_arrow_messages([payload.encode(row) for row in rows])
    for row in rows:
        key = [row[name][0] for name in ("symbol", "timeframe", "source", "ts")]
        assert_frame_equal(plain(BarStore(client).stored_rows(*key, key[-1])), plain(row))


def test_a_single_payload_is_not_touched() -> None:
    one = payload.encode(minutes(3))
    assert splice([one])[0] is one


def test_payloads_of_several_record_batches_and_without_rows_splice() -> None:
    several = written_at_once([minutes(2), minutes(3, symbol="USDJPY")])
    empty = payload.encode(minutes(0))
    (stream,) = splice([several, empty, payload.encode(minutes(4))])
    assert payload.decode(stream)["symbol"].to_list() == ["EURUSD"] * 2 + ["USDJPY"] * 3 + ["EURUSD"] * 4


def test_a_stream_without_an_end_mark_is_taken() -> None:
    ours = payload.encode(minutes(2))
    (stream,) = splice([ours.removesuffix(END_OF_STREAM), ours])
    assert payload.decode(stream).height == 4


def test_foreign_dictionaries_never_share_a_stream() -> None:
    eur, jpy = minutes(2), minutes(2, symbol="USDJPY")
    streams = splice([dictionary_symbols(eur), payload.encode(eur), dictionary_symbols(jpy), payload.encode(jpy)])
    assert [payload.decode(stream)["symbol"].to_list() for stream in streams] == [
        ["EURUSD"] * 2,
        ["EURUSD"] * 2 + ["USDJPY"] * 2,
        ["USDJPY"] * 2,
    ]


def test_a_dictionary_that_changes_within_a_payload_keeps_it_alone() -> None:
    schema = pa.schema([("symbol", pa.dictionary(pa.int8(), pa.string()))])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        for values in (["a"], ["b"]):
            writer.write_batch(
                pa.record_batch([pa.array(values).dictionary_encode().cast(schema[0].type)], schema=schema)
            )
    changing = sink.getvalue()
    assert splice([changing, changing]) == [changing, changing]


@pytest.mark.parametrize("broken", [b"", b"not arrow at all", payload.encode(minutes(50))[:-200]])
def test_what_is_no_stream_is_named_by_its_position(broken: bytes) -> None:
    with pytest.raises(UnreadableBatch, match="payload 1"):
        splice([payload.encode(minutes(1)), broken])


def test_clickhouse_reads_every_row_of_a_spliced_stream(client: Client) -> None:
    store = BarStore(client)
    frames = [minutes(1000, symbol=symbol, seed=i) for i, symbol in enumerate(("EURUSD", "USDJPY", "BRK.B"))]
    store.insert_arrow_messages(
        [payload.encode(frame) for frame in frames] + [dictionary_symbols(minutes(9, symbol="X"))]
    )
    for frame in [*frames, minutes(9, symbol="X")]:
        symbol, first, last = frame["symbol"][0], frame["ts"][0], frame["ts"][-1]
        assert_frame_equal(plain(store.stored_rows(symbol, "1m", "vendor_historical", first, last)), plain(frame))

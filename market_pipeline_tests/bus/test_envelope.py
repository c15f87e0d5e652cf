from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline import payload as arrow
from market_pipeline.bus.envelope import MAX_BYTES, BatchHeaders, decode, decode_all, encode_batches, strays
from market_pipeline.bus.header_fields import MAX_BATCH_ID
from market_pipeline.bus.publisher import headers_size
from market_pipeline.errors import InvalidBars, PayloadTooLarge, UnreadableBatch
from market_pipeline.market.bars import BAR_SCHEMA
from market_pipeline.market.digest import value_digest
from market_pipeline_tests.bus.bars import bars

TEXT = st.text(st.characters(), max_size=40)
MOMENT = st.datetimes(datetime(1970, 1, 1), datetime(2299, 12, 30)).map(
    lambda at: at.replace(tzinfo=UTC, microsecond=at.microsecond // 1000 * 1000)
)
HEADERS = st.builds(
    BatchHeaders,
    batch_id=st.integers(1, MAX_BATCH_ID),
    correlation_id=TEXT.filter(bool),
    source=TEXT.filter(bool),
    symbol=TEXT.filter(bool),
    timeframe=TEXT.filter(bool),
    rows=st.integers(0, 2**32 - 1),
    digest=st.integers(0, 2**64 - 1),
    start_ts=st.shared(MOMENT, key="ts"),
    end_ts=st.shared(MOMENT, key="ts").map(lambda at: at + timedelta(hours=1)),
    run_id=TEXT,
    vendor_request_id=TEXT,
    stages=st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True), st.integers(0, 2**43), max_size=8),
)


def headers() -> BatchHeaders:
    return encode_batches(bars(10), correlation_id="c", run_id="r")[0].headers


@given(HEADERS)
def test_headers_survive_the_wire(given_headers: BatchHeaders) -> None:
    on_the_wire = given_headers.to_nats()
    for name, value in on_the_wire.items():
        assert f"{name}{value}".isascii()
        assert f"{name}{value}".isprintable()
        assert value == value.strip()  # clients strip
    assert BatchHeaders.from_nats({**on_the_wire, "Nats-Msg-Id": "x"}) == given_headers
    wire = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in on_the_wire.items()) + "\r\n"
    assert headers_size(on_the_wire) == len(wire.encode())


@pytest.mark.parametrize(
    ("header", "value", "reason"),
    [
        ("Batch-Id", None, "unreadable_envelope"),
        ("Batch-Id", "0", "unreadable_envelope"),
        ("Batch-Id", "12_3", "unreadable_envelope"),
        ("Batch-Id", "٣", "unreadable_envelope"),
        ("Batch-Id", str(2**63), "unreadable_envelope"),
        ("Rows", "-1", "unreadable_envelope"),
        ("Rows", "many", "unreadable_envelope"),
        ("Symbol", "", "unreadable_envelope"),
        ("Symbol", "%FF", "unreadable_envelope"),
        ("Timeframe", "%ED%A0%80", "unreadable_envelope"),
        ("Correlation-Id", None, "unreadable_envelope"),
        ("End-Ts", "0", "unreadable_envelope"),
        ("Start-Ts", "99999999999999999", "unreadable_envelope"),
        ("Start-Ts", "-1", "unreadable_envelope"),
        ("End-Ts", "10413792000001", "unreadable_envelope"),
        ("Stage-fetched", "soon", "unreadable_envelope"),
        ("Schema-Version", None, "unreadable_envelope"),
        ("Schema-Version", "2", "schema_version"),
    ],
)
def test_a_wrong_header_is_named(header: str, value: str | None, reason: str) -> None:
    wire = headers().to_nats()
    if value is None:
        del wire[header]
    else:
        wire[header] = value
    with pytest.raises(UnreadableBatch, match="version" if reason == "schema_version" else header) as error:
        BatchHeaders.from_nats(wire)
    assert error.value.reason == reason


def test_no_headers_at_all_are_unreadable() -> None:
    with pytest.raises(UnreadableBatch):
        BatchHeaders.from_nats(None)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 3000),
    max_bytes=st.integers(4_000, 60_000),
    random=st.booleans(),
    seed=st.integers(0, 100),
    shuffled=st.booleans(),
)
def test_cutting_loses_nothing_and_keeps_the_limit(
    rows: int, max_bytes: int, random: bool, seed: int, shuffled: bool
) -> None:
    frame = bars(rows, random=random, seed=seed)
    given_frame = frame.sample(fraction=1, shuffle=True, seed=seed) if shuffled else frame
    batches = encode_batches(given_frame, correlation_id="c", max_bytes=max_bytes)
    assert sum(batch.headers.rows for batch in batches) == rows
    if not rows:
        assert batches == []
        return
    decoded = [decode(batch.payload, batch.headers) for batch in batches]
    assert pl.concat(decoded).drop("batch_id").equals(frame)
    assert pl.concat([batch.frame_slice for batch in batches]).equals(frame)
    assert max(len(batch.payload) for batch in batches) <= max_bytes
    assert sum(batch.headers.digest for batch in batches) % 2**64 == value_digest(frame)
    assert len({batch.headers.batch_id for batch in batches}) == len(batches)
    for batch, rows_of_it in zip(batches, decoded, strict=True):
        assert rows_of_it["batch_id"].unique().to_list() == [batch.headers.batch_id]
        assert (batch.headers.start_ts, batch.headers.end_ts) == (rows_of_it["ts"].min(), rows_of_it["ts"].max())


def test_a_usual_page_fills_its_batches() -> None:
    batches = encode_batches(bars(50_000), correlation_id="c", vendor_request_id="v", stages={"fetched": 5})
    assert len(batches) <= 4
    assert len(encode_batches(bars(17_000), correlation_id="c")) == 1  # smaller than the first guess
    assert all(MAX_BYTES * 0.6 < len(batch.payload) <= MAX_BYTES for batch in batches)
    assert batches[0].headers.stages["fetched"] == 5
    assert batches[0].headers.stages["encoded"] > 1_700_000_000_000


def test_a_limit_below_one_row_is_an_error() -> None:
    with pytest.raises(PayloadTooLarge):
        encode_batches(bars(5), correlation_id="c", max_bytes=200)


def test_a_batch_is_of_one_series() -> None:
    with pytest.raises(InvalidBars, match="'EURUSD', 'GBPUSD'"):
        encode_batches(pl.concat([bars(5), bars(5, symbol="GBPUSD")]), correlation_id="c")
    with pytest.raises(InvalidBars, match="trades: is UInt64"):
        encode_batches(bars(5).with_columns(pl.col("trades").cast(pl.UInt64)), correlation_id="c")
    with pytest.raises(InvalidBars, match="vwap: the column is missing"):
        encode_batches(bars(5).drop("vwap"), correlation_id="c")
    with pytest.raises(InvalidBars, match="origin: 'elsewhere' is none of"):
        encode_batches(bars(5).with_columns(origin=pl.lit("elsewhere")), correlation_id="c")


def test_the_encoding_has_the_same_schema_and_dictionaries_in_every_payload() -> None:
    one = pa.ipc.open_stream(encode_batches(bars(50), correlation_id="c")[0].payload).read_all()
    derived = bars(50, symbol="BTCUSD").with_columns(timeframe=pl.lit("1h"), source=pl.lit("derived"))
    other = pa.ipc.open_stream(encode_batches(derived, correlation_id="c")[0].payload).read_all()
    assert one.schema == other.schema == arrow.arrow_schema()
    assert one.schema.names == [*BAR_SCHEMA, "batch_id"]
    for name in arrow.DICTIONARIES:
        assert one[name].chunk(0).dictionary == other[name].chunk(0).dictionary
    assert one.schema.field("symbol").type == pa.string()


def test_a_foreign_encoding_is_read_too() -> None:
    batch = encode_batches(bars(50), correlation_id="c")[0]
    assert decode(foreign(batch.payload), batch.headers).drop("batch_id").equals(bars(50))


def test_a_payload_that_is_not_the_headers_is_refused() -> None:
    batch, other = (encode_batches(bars(50, seed=seed), correlation_id="c")[0] for seed in (1, 2))
    changed = other.frame_slice.with_columns(batch_id=pl.lit(batch.headers.batch_id, pl.UInt64))
    cases = {
        "unreadable_payload": [b"", b"no arrow", batch.payload[:-200], batch.payload[:100], other.payload],
        "digest_mismatch": [
            arrow.encode(changed),
            arrow.encode(changed.head(49)),
            arrow.encode(changed.with_columns(trades=pl.lit(None, pl.UInt32))),
        ],
    }
    for reason, payloads in cases.items():
        for payload in payloads:
            with pytest.raises(UnreadableBatch) as error:
                decode(payload, batch.headers)
            assert error.value.reason == reason
    with pytest.raises(UnreadableBatch, match="symbol"):
        decode(batch.payload, replace(batch.headers, symbol="GBPUSD"))


def test_rows_outside_the_range_of_the_headers_are_refused() -> None:
    batch, minute = encode_batches(bars(50), correlation_id="c")[0], timedelta(minutes=1)
    assert not strays(batch.payload, batch.headers)
    first, last = batch.headers.start_ts, batch.headers.end_ts
    for range_ in ((first + minute, last), (first, last - minute), (last + minute, last + minute)):
        narrow = replace(batch.headers, start_ts=range_[0], end_ts=range_[1])
        assert strays(batch.payload, narrow)
        with pytest.raises(UnreadableBatch, match="the headers say ts from") as error:
            decode(batch.payload, narrow)
        assert error.value.reason == "unreadable_payload"
    for doubtful in (b"", b"no arrow", batch.payload[:-200], foreign(batch.payload)):
        assert strays(doubtful, batch.headers)
    null = arrow.encode(arrow.decode(batch.payload).with_columns(ts=pl.lit(None, pl.Datetime("ms", "UTC"))))
    assert strays(null, batch.headers)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_payloads_are_refused_or_harmless(data: st.DataObject) -> None:
    batch = encode_batches(bars(20), correlation_id="c")[0]
    broken = bytearray(batch.payload)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(broken), batch.headers)
    except UnreadableBatch:
        return
    values = decoded.drop("batch_id", "revision", "origin")
    assert values.equals(batch.frame_slice.drop("revision", "origin"))


def foreign(payload: bytes) -> bytes:
    """Encode anew as a producer would that knows nothing of our dictionaries."""
    table = arrow.decode(payload).select(sorted([*BAR_SCHEMA, "batch_id"])).to_arrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def spoiled(data: st.DataObject, payload: bytes, given: BatchHeaders) -> tuple[bytes, BatchHeaders]:
    """Spoil a batch in a way that is drawn, or leave it."""
    kinds = ("good", "bytes", "foreign", "cut", "rows", "digest", "symbol", "null", "empty", "start", "end")
    how = data.draw(st.sampled_from(kinds))
    if how == "bytes":
        broken = bytearray(payload)
        for _ in range(data.draw(st.integers(1, 4))):
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
        return bytes(broken), given
    if how == "foreign":
        return foreign(payload), given
    if how == "cut":
        return payload[: data.draw(st.integers(0, len(payload)))], given
    if how == "null":
        name = data.draw(st.sampled_from(("symbol", "ts", "open", "vwap", "trades", "complete", "batch_id")))
        frame = arrow.decode(payload)
        return arrow.encode(frame.with_columns(pl.lit(None, frame.schema[name]).alias(name))), given
    if how == "empty":
        return arrow.encode(arrow.decode(payload).clear()), replace(given, rows=0, digest=0)
    wrong = {
        "rows": {"rows": given.rows + 1},
        "digest": {"digest": given.digest ^ 1},
        "symbol": {"symbol": "OTHER"},
        "start": {"start_ts": given.start_ts + timedelta(minutes=1)},
        "end": {"end_ts": given.end_ts - timedelta(minutes=1)},
    }
    return payload, replace(given, **wrong.get(how, {}))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_many_batches_at_once_are_judged_like_each_alone(data: st.DataObject) -> None:
    frame = bars(data.draw(st.integers(1, 12)))
    batches = []
    for at in range(frame.height):
        one = encode_batches(frame[at : at + data.draw(st.integers(1, 3))], correlation_id="c")[0]
        batches.append(spoiled(data, one.payload, one.headers))
    frames, reasons = [], {}
    for place, batch in enumerate(batches):
        try:
            frames.append(decode(*batch).with_columns(pl.lit(place, pl.UInt32).alias("place")))
        except UnreadableBatch as error:
            reasons[place] = (error.reason, str(error))

    decoded, places, errors = decode_all(batches)
    assert {place: (error.reason, str(error)) for place, error in errors.items()} == reasons
    expected = pl.concat(frames) if frames else decoded.with_columns(pl.lit(0, pl.UInt32).alias("place")).clear()
    assert decoded.with_columns(place=places).equals(expected)

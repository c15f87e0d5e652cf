"""From the bytes of an aggregates answer to a frame of bars.

The rows of a page are one line each once its `},{` are broken, and polars reads such lines in parallel and without
the interpreter's lock: 1.7M bars/s on 2 cores, against 1.4M for msgspec structs and for `pl.read_json`. It is strict:
anything but numbers sends the page down the slow road, which looks at each row alone.
"""

from __future__ import annotations

import math

import msgspec
import polars as pl

from market_pipeline.errors import VendorBadAnswer
from market_pipeline.vendors.base import MINUTE_SCHEMA, BadRow
from market_pipeline.vendors.polygon.answers import Complaint, Subject, body_error

_COLUMNS = {"t": "ts", "o": "open", "h": "high", "l": "low", "c": "close", "v": "volume", "vw": "vwap", "n": "trades"}
_WIRE: dict[str, pl.DataType] = {name: pl.Int64() if name == "t" else pl.Float64() for name in _COLUMNS}
_REQUIRED = ("t", "o", "h", "l", "c", "v")
_MOST_TRADES = 2**32 - 1
_NOTHING = (b"", b"null", b"[]")


class Aggregates(Complaint):
    """The envelope of an aggregates answer; `results` stays bytes."""

    ticker: str | None = None
    queryCount: int | None = None
    resultsCount: int | None = None
    next_url: str | None = None
    results: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def empty(self) -> bool:
        """Whether the answer holds no row: `results` absent, null or []."""
        view = memoryview(self.results)
        return len(view) < 64 and b"".join(bytes(view).split()) in _NOTHING


class Decoded(msgspec.Struct):
    """The bars of one answer, columns `MINUTE_SCHEMA`, ascending by `ts`, and what was left out."""

    frame: pl.DataFrame
    bad_rows: list[BadRow]
    duplicates: int


class _Row(msgspec.Struct):
    t: int
    o: float
    h: float
    l: float  # noqa: E741  # the vendor's name
    c: float
    v: float
    vw: float | None = None
    n: float | None = None


_ENVELOPE = msgspec.json.Decoder(Aggregates)
_ROWS = msgspec.json.Decoder(list[msgspec.Raw])
_ROW = msgspec.json.Decoder(_Row)


def read_aggregates(subject: Subject, body: bytes, ticker: str) -> Aggregates:
    """Read the envelope and check that it answers what was asked.

    Raises:
        VendorBadAnswer: no JSON, no envelope, a `status` that is no success, another ticker's answer.
        VendorNotEntitled: the words in a 200 say so.
    """
    try:
        envelope = _ENVELOPE.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise subject.error(VendorBadAnswer, f"{subject.what}: unreadable answer ({error})", status=200) from None
    if (failure := body_error(subject, envelope)) is not None:
        raise failure
    if envelope.ticker is not None and envelope.ticker.upper() != ticker.upper():
        raise _bad(subject, envelope, f"asked for {ticker}, answered for {envelope.ticker}")
    if envelope.empty and envelope.resultsCount:
        raise _bad(subject, envelope, f"resultsCount is {envelope.resultsCount} and there are no rows")
    return envelope


def decode_rows(subject: Subject, envelope: Aggregates) -> Decoded:
    """Decode the rows of an answer; rows that are no bars are set apart, equal repeats are dropped.

    Raises:
        VendorBadAnswer: `results` is no array, holds fewer rows than `resultsCount`, or two bars of one time differ.
    """
    bad_rows: list[BadRow] = []
    if envelope.empty:
        wire = pl.DataFrame(schema=_WIRE)
    else:
        raw = bytes(envelope.results).strip()
        strict = _read_strictly(raw)
        wire, bad_rows = (strict, []) if strict is not None else _read_row_by_row(subject, envelope, raw)
    rows = wire.height + len(bad_rows)
    if envelope.resultsCount is not None and rows < envelope.resultsCount:
        raise _bad(subject, envelope, f"resultsCount is {envelope.resultsCount} and there are {rows} rows")
    ordered = wire if _ascending(wire) else wire.unique(maintain_order=False).sort("t")
    if not _ascending(ordered):
        twice = ordered.filter(ordered["t"].is_duplicated())["t"][0]
        raise _bad(subject, envelope, f"two different bars with t={twice}")
    frame = ordered.select(
        pl.col(name).fill_null(0.0).cast(pl.UInt32) if name == "n" else pl.col(name) for name in _COLUMNS
    ).rename(_COLUMNS)
    return Decoded(
        frame.with_columns(pl.col("ts").cast(MINUTE_SCHEMA["ts"])), bad_rows, duplicates=wire.height - ordered.height
    )


def _read_strictly(raw: bytes) -> pl.DataFrame | None:
    if not raw.startswith(b"[{"):
        return None
    try:
        wire = pl.read_ndjson(raw[1:-1].replace(b"},{", b"}\n{"), schema=_WIRE)
    except pl.exceptions.PolarsError:
        return None
    trades = pl.col("n").fill_null(0.0)
    sound = wire.select(
        pl.all_horizontal(
            *(pl.col(name).is_not_null().all() for name in _REQUIRED),
            *(pl.col(name).is_finite().all() for name in _WIRE if name != "t"),
            ((trades >= 0) & (trades <= _MOST_TRADES) & (trades == trades.floor())).all(),
        )
    ).item()
    return wire if sound else None


def _read_row_by_row(subject: Subject, envelope: Aggregates, raw: bytes) -> tuple[pl.DataFrame, list[BadRow]]:
    try:
        rows = _ROWS.decode(raw)
    except msgspec.MsgspecError as error:
        raise _bad(subject, envelope, f"results hold no rows ({error})") from None
    good: list[_Row] = []
    bad: list[BadRow] = []
    for one in rows:
        try:
            row = _ROW.decode(one)
            reason = _fault(row)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            reason = str(error)
        if reason:
            bad.append(BadRow(bytes(one)[:2000].decode("utf-8", errors="replace"), reason))
        else:
            good.append(row)
    return pl.DataFrame({name: [getattr(row, name) for row in good] for name in _WIRE}, schema=_WIRE), bad


def _fault(row: _Row) -> str:
    for name in ("o", "h", "l", "c", "v", "vw"):
        value = getattr(row, name)
        if value is not None and not math.isfinite(value):
            return f"{name} is not finite"
    if row.n is not None and not (0 <= row.n <= _MOST_TRADES and row.n == math.floor(row.n)):
        return f"n is no count: {row.n!r}"
    return "" if -(2**63) <= row.t < 2**63 else f"t is no time: {row.t}"


def _ascending(wire: pl.DataFrame) -> bool:
    return bool((wire["t"].diff().drop_nulls() > 0).all())


def _bad(subject: Subject, envelope: Aggregates, message: str) -> Exception:
    return subject.error(
        VendorBadAnswer, f"{subject.what}: contradictory answer: {message}", status=200, request_id=envelope.request_id
    )

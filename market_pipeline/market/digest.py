"""A digest of bars' values that numpy and ClickHouse compute alike.

The formula, all in unsigned 64-bit arithmetic that wraps (mod 2^64); `>>` is a logical shift:

    w_i   the 64-bit word of column i, for the columns in this order (DIGEST_COLUMNS):
            ts                               epoch milliseconds (Int64, reinterpreted as UInt64)
            open, high, low, close, volume   the raw IEEE 754 pattern
            vwap                             the raw IEEE 754 pattern, or NULL_VWAP where vwap is null
            trades                           the number
            complete, is_deleted             0 or 1
    s     = Σ_i  MULTIPLIERS[i] * (w_i xor (w_i >> 32))
    r     = (s xor (s >> 29)) * MIX
    row   = r xor (r >> 32)
    value = Σ_rows row

The first shift carries the high bits, where a float keeps its exponent, into the low ones, so that no multiplier can
push them out; the step from s to row is not linear, so that two rows that exchange a value change the sum. The sum
over rows does not depend on their order. Symbol, timeframe, source, origin and revision are no values and stay out.

In ClickHouse: `multiply`, `plus` and `sum` of UInt64 wrap, `bitXor`, `bitShiftRight`, `reinterpretAsUInt64(Float64)`,
`toUInt64(toUnixTimestamp64Milli(ts))`. It guards against loss and mistakes, not against forgery.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

DIGEST_COLUMNS: tuple[str, ...] = (
    "ts",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "vwap",
    "trades",
    "complete",
    "is_deleted",
)
# Odd, so that multiplying loses nothing: outputs of splitmix64 from seed 0, lowest bit set.
MULTIPLIERS: tuple[int, ...] = (
    0xE220A8397B1DCDAF,
    0x6E789E6AA1B965F5,
    0x06C45D188009454F,
    0xF88BB8A8724C81ED,
    0x1B39896A51A8749B,
    0x53CB9F0C747EA2EB,
    0x2C829ABE1F4532E1,
    0xC584133AC916AB3D,
    0x3EE5789041C98AC3,
    0xF3B8488C368CB0A7,
)
MIX = 0x657EECDD3CB13D09
# A quiet NaN's pattern, which no valid bar holds: not to be confused with a vwap of 0.
NULL_VWAP = 0x7FF8000000000000

_CHUNK = 16_384  # rows: words, products and sums of one chunk stay in the CPU's cache


def row_digests(frame: pl.DataFrame) -> NDArray[np.uint64]:
    """Return the digest of each row of a bars frame (needs DIGEST_COLUMNS with the dtypes of BAR_SCHEMA)."""
    words = [_words(frame.get_column(name)) for name in DIGEST_COLUMNS]
    digests = np.empty(frame.height, dtype=np.uint64)
    mixed = np.empty(min(_CHUNK, frame.height), dtype=np.uint64)
    half, tail, mix = np.uint64(32), np.uint64(29), np.uint64(MIX)
    multipliers = [np.uint64(each) for each in MULTIPLIERS]
    for begin in range(0, frame.height, _CHUNK):
        total = digests[begin : begin + _CHUNK]
        total[:] = 0
        part = mixed[: len(total)]
        for column, multiplier in zip(words, multipliers, strict=True):
            word = column[begin : begin + _CHUNK]
            np.right_shift(word, half, out=part)
            np.bitwise_xor(part, word, out=part)
            np.multiply(part, multiplier, out=part)
            np.add(total, part, out=total)
        for shift, multiplier_ in ((tail, mix), (half, None)):
            np.right_shift(total, shift, out=part)
            np.bitwise_xor(total, part, out=total)
            if multiplier_ is not None:
                np.multiply(total, multiplier_, out=total)
    return digests


def value_digest(frame: pl.DataFrame) -> int:
    """Return the digest of all rows: the wrapping sum of `row_digests`, in [0, 2^64); 0 for no rows."""
    return int(row_digests(frame).sum(dtype=np.uint64))


def _words(column: pl.Series) -> NDArray[np.uint64]:
    """Return the raw 64-bit words of a column."""
    # No polars expression where a view will do: each one waits for its turn in the shared thread pool.
    if column.dtype == pl.Datetime:
        if column.dtype.time_unit != "ms":  # type: ignore[attr-defined]
            column = column.dt.cast_time_unit("ms")
        return column.to_physical().to_numpy().view(np.uint64)
    if column.dtype == pl.Float64:
        if not column.null_count():
            return np.ascontiguousarray(column.to_numpy()).view(np.uint64)
        words: NDArray[np.uint64] = column.fill_null(0.0).to_numpy().view(np.uint64)
        return np.where(column.is_null().to_numpy(), np.uint64(NULL_VWAP), words)
    return column.to_numpy().astype(np.uint64)

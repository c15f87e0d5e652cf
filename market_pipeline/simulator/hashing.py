"""Counter-based random numbers: a value depends on its key and its counter alone, never on what was drawn before.

The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014). That is what makes any minute of any
ticker reachable at random and a period independent of how it is cut.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)
_MASK = (1 << 64) - 1


def key(*parts: str | int) -> int:
    """Return a 64-bit key of the named stream, equal on every machine and in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def draw(stream: int, counters: Int64Array) -> UInt64Array:
    """Return one uniform 64-bit number per counter (any shape) of the stream."""
    x = counters.astype(np.uint64)
    x *= _GOLDEN
    x += np.uint64(stream & _MASK)
    x ^= x >> _S30
    x *= _FIRST
    x ^= x >> _S27
    x *= _SECOND
    x ^= x >> _S31
    return x


def uniform(stream: int, counters: Int64Array) -> FloatArray:
    """Return one number in [0, 1) per counter."""
    return (draw(stream, counters) >> np.uint64(11)).astype(np.float64) * (1.0 / (1 << 53))


def signed(stream: int, counters: Int64Array) -> FloatArray:
    """Return one number in [-1, 1) per counter."""
    return uniform(stream, counters) * 2.0 - 1.0


def fields(numbers: UInt64Array) -> npt.NDArray[np.uint16]:
    """Split each number (contiguous, any shape) into four independent 16-bit fields along a new last axis."""
    return numbers.astype("<u8", copy=False).view("<u2").reshape(*numbers.shape, 4)

"""Subjects, and the one encoding of free text into a token of a subject or a key.

NATS splits subjects at dots and reads `*` and `>` as wildcards, and key-value keys take only `[-/_=.a-zA-Z0-9]`: so
`BRK.B` or `C:EURUSD` as they are would name other subjects or be refused.
"""

from __future__ import annotations

import re

from market_pipeline.errors import InputError

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
_ESCAPE = re.compile(rb"=([0-9A-F]{2})")


def token(text: str) -> str:
    """Encode non-empty text as one token of a NATS subject and of a key-value key.

    Letters, digits, `_` and `-` stay, so that `EURUSD` reads as itself; every other byte of the UTF-8 form becomes
    `=` and two hexadecimal digits (`BRK.B` → `BRK=2EB`). Different texts have different tokens; `untoken` reverses it.

    Raises:
        InputError: the text is empty.
    """
    if not text:
        raise InputError("empty text cannot be a part of a subject")
    # Lone surrogates have no UTF-8 form of their own; `surrogatepass` keeps the encoding total and reversible.
    return "".join(
        chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in text.encode("utf-8", errors="surrogatepass")
    )


def untoken(encoded: str) -> str:
    """Decode what `token` encoded.

    Raises:
        InputError: the text is not a token, or not the one that `token` gives.
    """
    if not _TOKEN.fullmatch(encoded):
        raise InputError(f"{encoded!r} is not an encoded token")
    raw = _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), encoded.encode("ascii"))
    try:
        text = raw.decode("utf-8", errors="surrogatepass")
    except UnicodeDecodeError:
        raise InputError(f"{encoded!r} is not an encoded token") from None
    if token(text) != encoded:
        raise InputError(f"{encoded!r} is not the token of {text!r}")
    return text


def history_subject(symbol_key: str, timeframe: str) -> str:
    """Name the subject of historical and derived bars, `history.{symbol}.{timeframe}`."""
    return f"history.{token(symbol_key)}.{token(timeframe)}"


def market_subject(symbol_key: str, timeframe: str) -> str:
    """Name the subject of live bars, or of live ticks with `tick` as the timeframe: `market.{symbol}.{timeframe}`."""
    return f"market.{token(symbol_key)}.{token(timeframe)}"


def external_subject(dataset: str) -> str:
    """Name the subject of an external dataset, `external.{dataset}`."""
    return f"external.{token(dataset)}"


def dlq_subject(stream: str, reason: str) -> str:
    """Name the subject of dead letters, `dlq.{stream}.{reason}`."""
    return f"dlq.{token(stream)}.{token(reason)}"


def receipt_subject(run_id: str) -> str:
    """Name the core NATS subject on which a bridge tells a run what became of its batches."""
    return f"receipt.{token(run_id)}"


def throttle_subject(service: str) -> str:
    """Name the core NATS subject on which the hub slows a service down, `system.throttle.{service}`."""
    return f"system.throttle.{token(service)}"

"""What a vendor of history gives, whatever its protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import polars as pl

# What every page's frame looks like: `ts` is the open of the window, UTC.
MINUTE_SCHEMA: dict[str, pl.DataType] = {
    "ts": pl.Datetime("ms", "UTC"),
    "open": pl.Float64(),
    "high": pl.Float64(),
    "low": pl.Float64(),
    "close": pl.Float64(),
    "volume": pl.Float64(),
    "vwap": pl.Float64(),
    "trades": pl.UInt32(),
}


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """One planned request: minutes whose `ts` lies in [start, end), UTC."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of an answer that is no bar: its JSON text and why it was refused."""

    row: str
    reason: str


@dataclass(frozen=True, slots=True)
class MinutePage:
    """One answer of the vendor, decoded.

    `frame` has the columns of `MINUTE_SCHEMA`, `ts` ascending and unique within the request; `vwap` may be null and
    `trades` is 0 where the vendor names none. `bad_rows` came in the same answer and are not in `frame`.
    `fetched_at` is the time just BEFORE the request was sent: a bar is complete if its window had ended, and settled,
    by then. `page_no` counts the pages of `request` from 1; `last` marks its last one. `attempts` counts the HTTP
    requests that this page took. `empty_confirmed`: the answer was empty, and stayed so when it was asked for again.
    """

    frame: pl.DataFrame
    request: RangeRequest
    request_id: str
    fetched_at: datetime
    received_at: datetime
    page_no: int
    last: bool
    attempts: int
    empty_confirmed: bool = False
    bad_rows: list[BadRow] = field(default_factory=list)


class RateGate(Protocol):
    """Let requests through as fast as the plan allows, and no faster."""

    async def acquire(self) -> float:
        """Wait until one request may be sent; return the seconds waited."""
        ...

    async def note_delay(self, seconds: float) -> None:
        """Tell how long after its grant a request was answered or given up: the vendor may have counted it late."""
        ...


class VendorInstrument(Protocol):
    """What a vendor needs to know of an instrument."""

    @property
    def symbol(self) -> str:
        """The display form, for messages."""
        ...

    @property
    def vendor_ticker(self) -> str:
        """The vendor's form."""
        ...

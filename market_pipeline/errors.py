"""The one tree of errors.

    MarketPipelineError
    ├── SettingsError (terminal)              a setting, a secret file or an address is wrong
    ├── InputError (terminal)                 what a caller asked for cannot be
    │   ├── UnknownSymbol
    │   ├── UnknownTimeframe
    │   ├── BadRange                          dates out of order, in the future, before history
    │   └── InstrumentsFileError              instruments.yaml
    ├── InvalidBars (terminal)                a frame that is not bars; names column, row and value
    ├── VendorError
    │   ├── VendorAuthError (terminal)        401: the key is unknown
    │   ├── VendorNotEntitled (terminal)      403: the plan does not include the data
    │   ├── VendorNotFound (terminal)         404
    │   ├── VendorRequestRejected (terminal)  other 4xx
    │   ├── VendorRateLimited (transient)     429
    │   ├── VendorUnavailable (transient)     5xx, time-outs, connection lost
    │   ├── VendorBadAnswer (transient)       cut, unreadable or contradictory answers, page loops
    │   └── ClockWrong (terminal)             this machine's clock is ahead of the vendor's
    ├── BusError
    │   ├── BusUnreachable (transient)
    │   ├── BusAuthError (terminal)
    │   ├── StreamFull (transient)
    │   ├── PayloadTooLarge (terminal)
    │   ├── UnreadableBatch (terminal)        an envelope or payload that cannot be decoded
    │   └── SpoolError (transient)            the spool's folder cannot be written or read
    │       └── SpoolFull                     no room left for what could not be published
    ├── StreamMissing (transient)             a stream is not there; whoever connects next creates it anew
    ├── StoreError
    │   ├── StoreUnreachable (transient)
    │   ├── StoreAuthError (terminal)
    │   └── StoreQueryError (terminal)
    ├── HistoryError                          a load or a derivation did not reach its end
    │   ├── RangeNotLoaded                    names symbol, range and cause
    │   ├── VerificationFailed                what was published is not what the store holds
    │   └── StillSpooled                      what was to be published waits on disk: spooled is never success
    ├── BreakerOpen (transient)               not even tried: the server was away just now
    └── LocalStackError (terminal)            the embedded stack: ports, packages, locks, disk

`Transient` and `Terminal` are mix-ins: a retry asks `isinstance(error, Transient)` and nothing else.
"""

from __future__ import annotations

from datetime import datetime


class Transient:
    """Mark an error that may pass when the same thing is tried again."""


class Terminal:
    """Mark an error that only a person or another request can mend."""


class MarketPipelineError(Exception):
    """Be the root of every error that this package raises on purpose."""


class SettingsError(MarketPipelineError, Terminal):
    """A setting, a secret file or an address is wrong; the message names it and what to do."""


class InputError(MarketPipelineError, Terminal):
    """What the caller asked for cannot be."""


class UnknownSymbol(InputError):
    """The symbol is not among the instruments."""

    def __init__(self, symbol: str, known: list[str]) -> None:
        shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        super().__init__(f"unknown symbol {symbol!r}: the instruments file has {shown}")
        self.symbol = symbol


class UnknownTimeframe(InputError):
    """The timeframe is not one of ours."""


class BadRange(InputError):
    """A range of time that cannot be served: out of order, in the future, before the history."""


class InstrumentsFileError(InputError):
    """The instruments file cannot be read or holds something impossible."""


class InvalidBars(MarketPipelineError, Terminal):
    """A frame breaks the bar schema; the message names column, row and value."""


class VendorError(MarketPipelineError):
    """The vendor did not give what was asked for.

    `symbol`, `start` and `end` (UTC) name the request; `status` is the HTTP status, if there was one;
    `request_id` is the vendor's own. No key and no query string ever enters the message.
    """

    def __init__(
        self,
        message: str,
        *,
        symbol: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        where = f"{symbol} " if symbol else ""
        if start and end:
            where += f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"
        super().__init__(f"{where.strip()}: {message}" if where else message)
        self.symbol, self.start, self.end = symbol, start, end
        self.status, self.request_id = status, request_id


class VendorAuthError(VendorError, Terminal):
    """The vendor does not know the key (401)."""


class VendorNotEntitled(VendorError, Terminal):
    """The plan does not include the data (403)."""


class VendorNotFound(VendorError, Terminal):
    """The vendor has no such route or thing (404)."""


class VendorRequestRejected(VendorError, Terminal):
    """The vendor calls the request wrong (another 4xx)."""


class VendorRateLimited(VendorError, Transient):
    """Too many requests (429); `retry_after` in seconds when the vendor named it."""

    retry_after: float | None = None


class VendorUnavailable(VendorError, Transient):
    """A 5xx, a time-out or a lost connection."""


class VendorBadAnswer(VendorError, Transient):
    """An answer that is cut, unreadable or contradicts itself."""


class ClockWrong(VendorError, Terminal):
    """This machine's clock is ahead of the vendor's: what has settled cannot be told by it."""


class BusError(MarketPipelineError):
    """The message bus did not do what was asked."""


class BusUnreachable(BusError, Transient):
    """No connection to NATS, or no answer from JetStream."""


class StreamMissing(MarketPipelineError, Transient):
    """A stream is not there: NATS has lost its store, or somebody deleted it. Whoever connects next creates it anew."""


class BusAuthError(BusError, Terminal):
    """NATS refuses user or password."""


class StreamFull(BusError, Transient):
    """The stream is at its limit and discards new messages: wait, never spool."""


class PayloadTooLarge(BusError, Terminal):
    """A message over the limit, caught before it is published."""


class UnreadableBatch(BusError, Terminal):
    """An envelope or payload that cannot be decoded; `reason` is a dead-letter reason."""

    def __init__(self, message: str, *, reason: str = "unreadable_payload") -> None:
        super().__init__(message)
        self.reason = reason


class SpoolError(BusError, Transient):
    """The spool's folder cannot be written or read; the message names it and the system's reason."""


class SpoolFull(SpoolError):
    """The spool has no room: its limit, or the disk's. What was given to it is not kept; there may be room later."""


class StoreError(MarketPipelineError):
    """A store did not do what was asked."""


class StoreUnreachable(StoreError, Transient):
    """No connection, a time-out, or a server that is starting, stopping or overloaded."""


class StoreAuthError(StoreError, Terminal):
    """The store refuses user or password."""


class StoreQueryError(StoreError, Terminal):
    """The store refuses the statement; `code` is its own error code."""

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class HistoryError(MarketPipelineError):
    """A load or a derivation did not reach its end."""


class RangeNotLoaded(HistoryError):
    """Ranges are still missing after every retry; the message names symbol, range and cause.

    `missing` holds (symbol, start, end) in UTC; what landed before the failure stays landed.
    """

    def __init__(self, message: str, missing: list[tuple[str, datetime, datetime]]) -> None:
        super().__init__(message)
        self.missing = missing


class VerificationFailed(HistoryError):
    """What was published is not what the store holds, even after publishing it again."""


class StillSpooled(HistoryError):
    """What a run was to publish waits on disk, NATS being away for longer than the run may wait.

    Whoever publishes next, or a bridge, publishes it; the message names the folder. `batches` is how many wait.
    """

    def __init__(self, message: str, *, batches: int) -> None:
        super().__init__(message)
        self.batches = batches


class BreakerOpen(MarketPipelineError, Transient):
    """The breaker of an edge is open: nothing was sent. `retry_after`: seconds until a trial may be allowed."""

    def __init__(self, name: str, retry_after: float, last_error: str) -> None:
        super().__init__(f"{name}: not tried for {retry_after:.1f} s more, it failed too often ({last_error})")
        self.name, self.retry_after, self.last_error = name, retry_after, last_error


class LocalStackError(MarketPipelineError, Terminal):
    """The embedded stack cannot start or go on; the message says what to do."""

"""Read bars and ticks: what notebooks, back-tests and models import.

from market_pipeline.read import bars, ticks
frame = bars("EUR/USD", "1h", "2024-01-01", "2024-02-01")
quotes = ticks("EUR/USD", "2024-01-02T08:00", "2024-01-02T09:00")
then = bars("EUR/USD", "1h", "2024-01-01", "2024-02-01", as_of="2024-02-01T09:30")  # before any later correction
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta

import polars as pl

from market_pipeline.errors import BadRange, StoreUnreachable
from market_pipeline.instruments_file import load_instruments
from market_pipeline.market import timeframes
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.ticks import TICK_SCHEMA
from market_pipeline.market.timeframes import Timeframe, midnight
from market_pipeline.settings import ClickHouseSettings, Settings, load_settings
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import Client, connect
from market_pipeline.stores.seconds import AllBarStore

Moment = str | date | datetime

COLUMNS: tuple[str, ...] = (
    "symbol",
    "timeframe",
    "ts",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "vwap",
    "trades",
    "complete",
    "source",
    "origin",
)

_clients: dict[tuple[object, ...], Client] = {}
_lock = threading.Lock()


def bars(
    symbol: str,
    timeframe: str | Timeframe,
    start: Moment,
    end: Moment,
    *,
    as_of: Moment | None = None,
    settings: Settings | None = None,
) -> pl.DataFrame:
    """Return the winning bars of a symbol with ts in [start, end), sorted by ts.

    One bar a window, of the source that wins there; only windows that have closed; nothing is filled in where the
    market gave no bar.

    Args:
        symbol: any form: display (`EUR/USD`), key (`EURUSD`) or the vendor's (`C:EURUSD`), in any case.
        timeframe: 1m, 5m, 15m, 30m, 1h, 4h, 1d or 1w; or 1s, which live ticks give and which is kept for seven days.
        start, end: a datetime, a date (its midnight) or ISO 8601 text of either; without a time zone UTC is meant.
        as_of: give exactly what this platform had at that moment: bars that it stored later are left out, bars that
            were corrected or withdrawn later are as they were, and only windows that had closed are there. Bars are
            known from when they were stored: a history loaded today was not known yesterday. Which source wins is
            decided by the ranking of today (`history.precedence`). Not for 1s, of which no earlier versions are kept.
        settings: default: `load_settings()`, the environment and the local stack's file.

    Returns:
        symbol (String, display form), timeframe (String), ts (Datetime ms UTC, open of the window), open, high, low,
        close, volume (Float64), vwap (Float64, null where the vendor gives none), trades (UInt32), complete (Boolean:
        every expected minute is there and settled), source (String: of 5m and more `derived`), origin (String: of
        derived bars the weakest source among their minutes, else "").

    Raises:
        UnknownSymbol, UnknownTimeframe: the message lists what there is.
        BadRange: a time cannot be read, end is not after start, start lies in the future or after `as_of`, end before
            the history; `as_of` lies in the future, or before anything of the series was stored.
        StoreUnreachable, StoreAuthError: ClickHouse does not answer or refuses the user.
    """
    settings = settings or load_settings()
    instrument = load_instruments(settings).get(symbol)
    window = timeframes.timeframe(timeframe)
    first, last = moment(start, "start"), moment(end, "end")
    now = datetime.now(UTC)
    if first > now:
        raise BadRange(f"the range starts in the future ({first.isoformat()})")
    if last <= first:
        raise BadRange(f"the range ends ({last.isoformat()}) at or before its start ({first.isoformat()})")
    history = midnight(instrument.history_start)
    if last <= history:
        raise BadRange(
            f"the range ends ({last.isoformat()}) before the history of {instrument.symbol} starts "
            f"({instrument.history_start.isoformat()}, history_start in the instruments file)"
        )
    known = _as_of(as_of, window, now)
    if known is not None and first > known:
        raise BadRange(f"the range starts ({first.isoformat()}) after the moment as of which ({known.isoformat()})")
    return _winners(settings, instrument, window, first, last, known)


def newest(
    symbol: str,
    timeframe: str | Timeframe,
    count: int,
    before: Moment | None = None,
    *,
    as_of: Moment | None = None,
    settings: Settings | None = None,
) -> pl.DataFrame:
    """Return at most the newest `count` winning bars with ts before `before` (default: now, or `as_of`).

    Columns and `as_of` are those of `bars`.

    Raises:
        UnknownSymbol, UnknownTimeframe, BadRange, StoreUnreachable, StoreAuthError: as `bars`.
    """
    if count < 1:
        raise BadRange(f"the number of bars must be 1 or more, not {count}")
    settings = settings or load_settings()
    instrument = load_instruments(settings).get(symbol)
    window = timeframes.timeframe(timeframe)
    now = datetime.now(UTC)
    known = _as_of(as_of, window, now)
    end = (known or now) if before is None else moment(before, "before")
    with _store(settings.clickhouse) as store:
        # bars that are withdrawn now may have been there then
        ever = store.span if known is None else store.versions_span
        span = ever(instrument.key, window.code)
    if span is None or span[0] >= end:
        return _winners(settings, instrument, window, end, end, known)
    first, last = span[0], min(end, span[1] + window.length)
    # markets close and thin out: look back twice the bars' length and a pause, further only if that was not enough
    pause = timedelta(days=7) if window.seconds >= 60 else timedelta(minutes=10)
    reach = 2 * count * window.length + pause
    while True:
        frame = _winners(settings, instrument, window, max(first, last - reach), last, known)
        if frame.height >= count or last - reach <= first:
            return frame.tail(count)
        reach *= 4


def span(
    symbol: str, timeframe: str | Timeframe, *, settings: Settings | None = None
) -> tuple[datetime, datetime, int] | None:
    """Return ts of the first and the last bar that is stored of a symbol and the number of bars; None if there is none.

    Raises:
        UnknownSymbol, UnknownTimeframe, StoreUnreachable, StoreAuthError: as `bars`.
    """
    settings = settings or load_settings()
    instrument = load_instruments(settings).get(symbol)
    with _store(settings.clickhouse) as store:
        return store.span(instrument.key, timeframes.timeframe(timeframe).code)


def ticks(symbol: str, start: Moment, end: Moment, *, settings: Settings | None = None) -> pl.DataFrame:
    """Return the live quotes and trades of a symbol with ts in [start, end), sorted by ts, then as they arrived.

    Exact repeats are real and stay. Arguments as of `bars`.

    Returns:
        symbol (String, display form), ts (Datetime ms UTC, the vendor's time), kind (String: quote or trade), bid, ask
        (Float64, null for trades), price, size (Float64, null for quotes), exchange, conditions (String, null where the
        vendor gives none), received_at (Datetime ms UTC, when the collector had it).

    Raises:
        UnknownSymbol, BadRange: as `bars`.
        StoreUnreachable, StoreAuthError: PostgreSQL does not answer or refuses the user.
        StoreQueryError: no tick has ever been stored there.
    """
    from market_pipeline.stores.ticks.reader import TickReader  # readers of bars need no PostgreSQL driver

    settings = settings or load_settings()
    instrument = load_instruments(settings).get(symbol)
    first, last = moment(start, "start"), moment(end, "end")
    if last <= first:
        raise BadRange(f"the range ends ({last.isoformat()}) at or before its start ({first.isoformat()})")
    with TickReader(settings.postgres) as reader:
        frame = reader.ticks(instrument.key, first, last)
    return frame.select(list(TICK_SCHEMA)).with_columns(pl.lit(instrument.symbol).alias("symbol"))


def _winners(
    settings: Settings,
    instrument: Instrument,
    window: Timeframe,
    start: datetime,
    end: datetime,
    as_of: datetime | None = None,
) -> pl.DataFrame:
    """Return the closed windows of a range, as of a moment or of now."""
    with _store(settings.clickhouse) as store:
        if as_of is None:
            seen = datetime.now(UTC)
            frame = store.winners(instrument.key, window.code, start, end, COLUMNS)
        else:
            seen = as_of
            frame = store.winners_as_of(instrument.key, window.code, start, end, as_of, COLUMNS)
            if frame.is_empty():
                _check_known(store, instrument, window, as_of)
    return frame.filter(pl.col("ts") <= seen - window.length).with_columns(pl.lit(instrument.symbol).alias("symbol"))


def _as_of(value: Moment | None, window: Timeframe, now: datetime) -> datetime | None:
    """Return the moment as of which bars are asked for.

    Raises:
        BadRange: it lies in the future, or the timeframe keeps no earlier versions.
    """
    if value is None:
        return None
    known = moment(value, "as_of")
    if known > now:
        raise BadRange(f"as_of lies in the future ({known.isoformat()}): what will be known then, nobody knows")
    if window.code == "1s":
        raise BadRange("bars of 1s have no as_of: their earlier versions are not kept")
    return known


def _check_known(store: BarStore, instrument: Instrument, window: Timeframe, as_of: datetime) -> None:
    """Refuse a moment before the first bar of the series was stored: an empty answer would look like an empty market.

    Raises:
        BadRange: with the moment from which on there are answers.
    """
    ever = store.versions_span(instrument.key, window.code)
    if ever is not None and as_of < ever[2]:
        raise BadRange(
            f"nothing of {instrument.symbol} {window.code} was stored yet as of {as_of.isoformat()}: the first bars "
            f"became known at {ever[2].isoformat(timespec='milliseconds')}"
        )


def moment(value: Moment, name: str) -> datetime:
    """Return a time as an aware UTC datetime: a datetime, a date (its midnight) or ISO 8601 text; naive means UTC.

    Raises:
        BadRange: it is none of these; the message begins with `name`.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise BadRange(f"{name} {value!r} is no date or time: write 2024-01-31 or 2024-01-31T15:30 (UTC)") from None
    if not isinstance(value, datetime):
        if not isinstance(value, date):
            raise BadRange(f"{name} must be a date, a datetime or ISO 8601 text, not {type(value).__name__}")
        value = datetime.combine(value, time())
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


@contextmanager
def _store(settings: ClickHouseSettings) -> Iterator[BarStore]:
    """Yield the bars over this process's connection; one that fails is not kept."""
    try:
        yield AllBarStore(_client(settings))
    except StoreUnreachable:
        _forget(settings)
        raise


def _client(settings: ClickHouseSettings) -> Client:
    """Return the connection of these settings, made once a process."""
    key = _key(settings)
    with _lock:
        if key not in _clients:
            _clients[key] = connect(settings)
        return _clients[key]


def _forget(settings: ClickHouseSettings) -> None:
    with _lock:
        client = _clients.pop(_key(settings), None)
    if client is not None:
        client.close()


def _key(settings: ClickHouseSettings) -> tuple[object, ...]:
    return tuple(settings.model_dump().values())

"""The names of the vendor's streams: markets, topics, pairs, and the acknowledgements of subscriptions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from market_pipeline.errors import SettingsError
from market_pipeline.market.instruments import AssetClass, Instrument
from market_pipeline.settings import StreamSettings, VendorSettings

Market = Literal["forex", "crypto", "stocks"]

MARKETS: dict[AssetClass, Market] = {"forex": "forex", "crypto": "crypto", "stock": "stocks"}
# The first is what a market's bars are made of: a symbol's stream counts as begun when this one is acknowledged.
TOPICS: dict[Market, tuple[str, ...]] = {"forex": ("C",), "crypto": ("XT", "XQ"), "stocks": ("T", "Q")}
# What the kind of those events is called in a tick.
PRIMARY_KIND: dict[Market, str] = {"forex": "quote", "crypto": "trade", "stocks": "trade"}

_SEPARATORS = re.compile(r"[/\-_: ]")
_SUBSCRIBED = "subscribed to:"
# REST and streams live on neighbouring hosts of one domain.
_REST_HOST = re.compile(r"^api\.(?=[a-z0-9-]+\.[a-z]+$)")


@dataclass(frozen=True, slots=True)
class Topics:
    """What one connection asks for.

    market: forex, crypto or stocks. symbol_of: the key of each form in which the vendor may name a symbol.
    asked: topic as it is sent (`C.EUR/USD`) → key. primary: the topics that bars are made of. forms: a topic in any
        spelling of an acknowledgement → as it is sent.
    """

    market: Market
    symbol_of: dict[str, str]
    asked: dict[str, str]
    primary: frozenset[str]
    forms: dict[str, str]

    def acknowledged(self, message: str) -> list[str]:
        """Return the topics that a status message acknowledges, in the form in which they were asked for."""
        text = message.strip()
        if not text.lower().startswith(_SUBSCRIBED):
            return []
        given = (_canonical(topic.strip()) for topic in text[len(_SUBSCRIBED) :].split(","))
        return [self.forms[topic] for topic in given if topic in self.forms]


def topics_of(instruments: Iterable[Instrument], market: Market, separator: str = "/") -> Topics:
    """Return what to ask of a market's stream for these instruments; those of other markets are passed over."""
    symbol_of: dict[str, str] = {}
    asked: dict[str, str] = {}
    primary: set[str] = set()
    for instrument in instruments:
        if MARKETS[instrument.asset_class] != market:
            continue
        for form in (vendor_pair(instrument, "/"), vendor_pair(instrument, "-"), instrument.vendor_ticker):
            symbol_of[form] = instrument.key
        topics = [f"{topic}.{vendor_pair(instrument, separator)}" for topic in TOPICS[market]]
        asked |= dict.fromkeys(topics, instrument.key)
        primary.add(topics[0])
    return Topics(market, symbol_of, asked, frozenset(primary), {_canonical(topic): topic for topic in asked})


def vendor_pair(instrument: Instrument, separator: str) -> str:
    """Return the vendor's streaming form of a symbol: `EUR/USD` or `EUR-USD`, `BTC-USD`; a stock's ticker as it is."""
    if instrument.asset_class == "stock":
        return instrument.vendor_ticker
    body = instrument.vendor_ticker.partition(":")[2]
    for text in (instrument.symbol, body):
        parts = _SEPARATORS.split(text)
        if len(parts) == 2 and all(parts):
            return separator.join(parts).upper()
    return f"{body[:-3]}{separator}{body[-3:]}"  # the quote currency has three letters


def stream_url(stream: StreamSettings, vendor: VendorSettings, market: Market) -> str:
    """Return the address of a market's stream: under `stream.url`, or derived from the vendor's REST address.

    `https://api.polygon.io` gives `wss://socket.polygon.io/forex`; a vendor under any other address (the simulator)
    streams where it answers REST.

    Raises:
        SettingsError: the vendor's address has no host.
    """
    if stream.url:
        return f"{stream.url}/{market}"
    parts = urlsplit(vendor.base_url)
    if not parts.netloc:
        raise SettingsError("stream.url cannot be derived: vendor.base_url has no host")
    scheme = "wss" if parts.scheme == "https" else "ws"
    return f"{scheme}://{_REST_HOST.sub('socket.', parts.netloc)}/{market}"


def _canonical(topic: str) -> str:
    kind, _, name = topic.partition(".")
    return f"{kind}.{name.replace('-', '/')}".upper()

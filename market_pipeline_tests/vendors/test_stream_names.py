"""Topics, addresses and acknowledgements."""

from __future__ import annotations

from datetime import date

import pytest

from market_pipeline.market.instruments import AssetClass, Instrument
from market_pipeline.settings import StreamSettings, VendorSettings
from market_pipeline.vendors.polygon.stream.names import stream_url, topics_of, vendor_pair


def instrument(symbol: str, asset_class: AssetClass, ticker: str) -> Instrument:
    calendar = "XNYS" if asset_class == "stock" else asset_class
    return Instrument(
        symbol=symbol, asset_class=asset_class, vendor_ticker=ticker, calendar=calendar, history_start=date(2020, 1, 1)
    )


EURUSD = instrument("EUR/USD", "forex", "C:EURUSD")
BTCUSD = instrument("BTC/USD", "crypto", "X:BTCUSD")
BRKB = instrument("BRK.B", "stock", "BRK.B")


@pytest.mark.parametrize(
    ("one", "separator", "pair"),
    [
        (EURUSD, "/", "EUR/USD"),
        (EURUSD, "-", "EUR-USD"),
        (BTCUSD, "-", "BTC-USD"),
        (BRKB, "/", "BRK.B"),
        (instrument("EURUSD", "forex", "C:EURUSD"), "/", "EUR/USD"),
        (instrument("DOGEUSD", "crypto", "X:DOGEUSD"), "-", "DOGE-USD"),
        (instrument("Euro", "forex", "C:EUR-USD"), "/", "EUR/USD"),
    ],
)
def test_pairs(one: Instrument, separator: str, pair: str) -> None:
    assert vendor_pair(one, separator) == pair


def test_each_market_asks_for_its_own() -> None:
    everything = [EURUSD, BTCUSD, BRKB]
    assert topics_of(everything, "forex").asked == {"C.EUR/USD": "EURUSD"}
    assert topics_of(everything, "crypto", "-").asked == {"XT.BTC-USD": "BTCUSD", "XQ.BTC-USD": "BTCUSD"}
    assert topics_of(everything, "crypto", "-").primary == {"XT.BTC-USD"}
    assert topics_of(everything, "stocks").asked == {"T.BRK.B": "BRK.B", "Q.BRK.B": "BRK.B"}


@pytest.mark.parametrize(
    "message", ["subscribed to: C.EUR/USD", "subscribed to: C.EUR-USD", "Subscribed To: c.eur/usd"]
)
@pytest.mark.parametrize("separator", ["/", "-"])
def test_acknowledgements_in_any_form(message: str, separator: str) -> None:
    topics = topics_of([EURUSD], "forex", separator)
    assert topics.acknowledged(message) == list(topics.asked)


def test_an_acknowledgement_of_several_and_of_none() -> None:
    topics = topics_of([BTCUSD, BRKB], "crypto")
    assert topics.acknowledged("subscribed to: XT.BTC-USD, XQ.BTC/USD,XT.ETH-USD") == ["XT.BTC/USD", "XQ.BTC/USD"]
    assert topics.acknowledged("authenticated") == []
    assert topics.acknowledged("") == []


@pytest.mark.parametrize(
    ("base", "url", "expected"),
    [
        ("https://api.polygon.io", "", "wss://socket.polygon.io/forex"),
        ("https://api.massive.com", "", "wss://socket.massive.com/forex"),
        ("http://127.0.0.1:8080", "", "ws://127.0.0.1:8080/forex"),
        ("https://vendor.example", "", "wss://vendor.example/forex"),
        ("https://api.polygon.io", "ws://127.0.0.1:9/", "ws://127.0.0.1:9/forex"),
    ],
)
def test_addresses(base: str, url: str, expected: str) -> None:
    assert stream_url(StreamSettings(url=url), VendorSettings(base_url=base), "forex") == expected


@pytest.mark.parametrize(
    "url", ["http://vendor.example", "wss://user:word@vendor.example", "wss://v.example?apiKey=1", "x"]
)
def test_addresses_that_cannot_be(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        StreamSettings(url=url)

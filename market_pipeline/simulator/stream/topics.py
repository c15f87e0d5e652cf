"""Topics and pairs: what a client may subscribe to, in the vendor's words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from market_pipeline.simulator.sessions import MINUTE_MS
from market_pipeline.simulator.tickers import Market

TICK_TOPICS: dict[Market, tuple[str, ...]] = {"forex": ("C",), "crypto": ("XT", "XQ"), "stocks": ("T", "Q")}
BAR_TOPICS: dict[Market, dict[str, int]] = {
    "forex": {"CA": MINUTE_MS, "CAS": 1_000},
    "crypto": {"XA": MINUTE_MS, "XAS": 1_000},
    "stocks": {"AM": MINUTE_MS, "A": 1_000},
}
MARKETS: tuple[Market, ...] = get_args(Market)
_SEPARATOR: dict[Market, Literal["/", "-", ""]] = {"forex": "/", "crypto": "-", "stocks": ""}


@dataclass(frozen=True, slots=True)
class Lane:
    """Hold one topic of one ticker: what the vendor sends under it. `key` ("C.EUR/USD") names it in statistics."""

    key: str
    topic: str
    ticker: str
    pair: str


def lanes_of(parameter: str, market: Market, listed: Callable[[], list[str]]) -> list[Lane] | None:
    """Return the lanes that a parameter ("C.EUR/USD", "XT.BTC-USD", "T.BRK.B", "C.*") means.

    None for a topic that the market does not have: the vendor drops it in silence. A name in no form of the market
    means nothing, but is acknowledged; so is a ticker that the vendor does not know.
    """
    topic, _, name = parameter.partition(".")
    if topic not in TICK_TOPICS[market] and topic not in BAR_TOPICS[market]:
        return None
    tickers = listed() if name == "*" else [_ticker(market, name)]
    return [lane(topic, ticker, market) for ticker in tickers if ticker is not None]


def lane(topic: str, ticker: str, market: Market) -> Lane:
    """Return the lane of a topic and a ticker ("C:EURUSD")."""
    pair = pair_of(ticker, market)
    return Lane(f"{topic}.{pair}", topic, ticker, pair)


def pair_of(ticker: str, market: Market) -> str:
    """Return a ticker as events name it: EUR/USD, BTC-USD, SPY."""
    if market == "stocks":
        return ticker
    plain = ticker[2:]
    # What is traded varies in length, what it is priced in does not, save for the coins that stand for a dollar.
    quoted = 4 if plain.endswith(("USDT", "USDC")) and market == "crypto" and len(plain) > 6 else 3
    return f"{plain[:-quoted]}{_SEPARATOR[market]}{plain[-quoted:]}"


def _ticker(market: Market, name: str) -> str | None:
    if market == "stocks":
        return name or None
    base, separator, quoted = name.replace("/", "-").partition("-")
    if not (base and separator and quoted):
        return None
    return f"{'C' if market == 'forex' else 'X'}:{base}{quoted}"

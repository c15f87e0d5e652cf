"""What the vendor knows of a ticker: its market, its price level and precision, how often a minute has no bar.

Tickers have the vendor's forms: `C:EURUSD` (forex), `X:BTCUSD` (crypto), `AAPL` (stocks). Any ticker of such a form
exists here, with properties drawn from its name. Anything else is unknown, and so is every ticker with `ZZZ` in it
(C:ZZZUSD, X:ZZZUSD, ZZZ), which gives a test an unknown ticker of each market.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from string import ascii_uppercase
from typing import Literal

from market_pipeline.simulator.hashing import key

Market = Literal["forex", "crypto", "stocks"]

_FORMS: tuple[tuple[Market, re.Pattern[str]], ...] = (
    ("forex", re.compile(r"C:[A-Z]{6}")),
    ("crypto", re.compile(r"X:[A-Z0-9]{5,12}")),
    ("stocks", re.compile(r"[A-Z][A-Z0-9]{0,4}([./][A-Z]{1,3})?")),
)

# Price levels of well-known tickers, so that a chart of them looks right: (price, decimals).
_LEVELS: dict[str, tuple[float, int]] = {
    "C:EURUSD": (1.12, 5),
    "C:GBPUSD": (1.31, 5),
    "C:AUDUSD": (0.71, 5),
    "C:NZDUSD": (0.66, 5),
    "C:USDCHF": (0.94, 5),
    "C:USDCAD": (1.33, 5),
    "C:EURGBP": (0.86, 5),
    "C:XAUUSD": (1900.0, 2),
    "X:BTCUSD": (30000.0, 2),
    "X:ETHUSD": (1900.0, 2),
    "X:SOLUSD": (80.0, 2),
    "X:ADAUSD": (0.45, 5),
    "X:XRPUSD": (0.55, 5),
    "X:DOGEUSD": (0.12, 5),
    "AAPL": (150.0, 2),
    "IBM": (180.0, 2),
    "MSFT": (280.0, 2),
    "SPY": (400.0, 2),
}
_THIN_SHARE: dict[Market, float] = {"forex": 0.002, "stocks": 0.002, "crypto": 0.0005}
_VOLATILITY: dict[Market, float] = {"forex": 1.0, "stocks": 3.0, "crypto": 5.0}


@dataclass(frozen=True, slots=True)
class Profile:
    """Hold the fixed properties of a ticker.

    `price` is the level the history wanders about, `decimals` its precision, `volatility` a factor (forex: about 1),
    `thin_share` the share of the session's minutes that have no bar.
    """

    ticker: str
    market: Market
    price: float
    decimals: int
    volatility: float
    thin_share: float


def market_of(ticker: str) -> Market | None:
    """Return the ticker's market by its form, or None for a ticker that the vendor does not know."""
    if "ZZZ" in ticker:
        return None
    return next((market for market, form in _FORMS if form.fullmatch(ticker)), None)


def listed(market: Market) -> list[str]:
    """Return the market's well-known tickers: what a subscription to all of them means, for any ticker exists."""
    return [ticker for ticker in _LEVELS if market_of(ticker) == market]


def load_tickers(market: Market, count: int) -> list[str]:
    """Return so many tickers for a load, priced in XTS, the currency code that ISO 4217 reserves for testing.

    Raises ValueError above 17,000.
    """
    if not 0 <= count <= 17_000:
        raise ValueError("there are 0 to 17000 tickers for a load")
    names = ("".join(letters) for letters in product(ascii_uppercase, repeat=3))
    form = {"forex": "C:{}XTS", "crypto": "X:{}XTS", "stocks": "XT{}"}[market]
    return [form.format(name) for name in islice(names, count)]


@lru_cache(maxsize=32_768)
def profile(ticker: str) -> Profile:
    """Return the ticker's properties.

    About one ticker in five has a bar in every minute of its session; C:USDCHF and X:ETHUSD are among them on purpose,
    so that a test has known ones. Raises KeyError for an unknown ticker.
    """
    market = market_of(ticker)
    if market is None:
        raise KeyError(f"unknown ticker {ticker!r}")
    drawn = key("profile", ticker)
    price, decimals = _LEVELS.get(ticker) or _drawn_level(ticker, market, drawn)
    never_thin = ticker in ("C:USDCHF", "X:ETHUSD") or (ticker not in _LEVELS and drawn % 5 == 0)
    return Profile(
        ticker=ticker,
        market=market,
        price=price,
        decimals=decimals,
        volatility=_VOLATILITY[market] * (0.7 + 0.3 * (drawn >> 32) / 2**32),
        thin_share=0.0 if never_thin else _THIN_SHARE[market],
    )


def _drawn_level(ticker: str, market: Market, drawn: int) -> tuple[float, int]:
    share = ((drawn >> 8) & 0xFFFF) / 65536
    if market == "forex":
        return (90.0 + 60.0 * share, 3) if ticker.endswith("JPY") else (0.6 + 1.2 * share, 5)
    return (20.0 + 480.0 * share, 2)

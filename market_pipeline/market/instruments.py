"""The instruments: what is loaded, streamed and served, and the forms of their symbols.

A symbol has one display form (`EUR/USD`), one key (`EURUSD`: columns, partitions) and one vendor form (`C:EURUSD`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from market_pipeline.errors import InstrumentsFileError, UnknownSymbol

AssetClass = Literal["forex", "crypto", "stock"]
PriceBasis = Literal["mid", "bid", "ask"]

_SEPARATORS = re.compile(r"[/\-_: ]")
# How the vendor marks an asset class in a ticker: https://polygon.io/docs/rest/forex/overview, .../crypto/overview
_VENDOR_PREFIX: dict[str, str] = {"forex": "C:", "crypto": "X:", "stock": ""}


def symbol_key(symbol: str) -> str:
    """Return the key of a display form: the symbol without separators (`EUR/USD` → `EURUSD`; `BRK.B` keeps its dot)."""
    return _SEPARATORS.sub("", symbol)


class Instrument(BaseModel):
    """Describe one instrument; immutable, and refuses fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    symbol: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9./\-_: ]{0,30}$")
    asset_class: AssetClass
    vendor_ticker: str = Field(pattern=r"^[A-Za-z0-9.:\-/]{1,32}$")
    calendar: str = Field(pattern=r"^[A-Za-z0-9_./\-]{2,16}$")
    history_start: date = Field(ge=date(1970, 1, 1))
    price_basis: PriceBasis = "mid"
    partition: str = Field(
        default_factory=lambda given: symbol_key(given.get("symbol", "")), pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*$"
    )
    thin_run: int = Field(default=5, ge=1)

    @property
    def key(self) -> str:
        """The symbol without separators: the value of a bar's `symbol` column."""
        return symbol_key(self.symbol)

    @model_validator(mode="after")
    def _forms_fit(self) -> Instrument:
        prefix = _VENDOR_PREFIX[self.asset_class]
        if prefix and not self.vendor_ticker.startswith(prefix):
            raise ValueError(f"vendor_ticker {self.vendor_ticker!r} of a {self.asset_class} must start with {prefix!r}")
        if not prefix and ":" in self.vendor_ticker:
            raise ValueError(f"vendor_ticker {self.vendor_ticker!r} of a stock must not have a prefix")
        if self.asset_class != "stock" and self.calendar != self.asset_class:
            raise ValueError(f"calendar {self.calendar!r} does not fit: a {self.asset_class} has {self.asset_class!r}")
        if self.asset_class == "stock" and self.calendar in {"forex", "crypto"}:
            raise ValueError(f"calendar {self.calendar!r} does not fit a stock: give an exchange's code, such as XNYS")
        return self


class Instruments:
    """Hold instruments in the file's order and find them by any form of their symbol."""

    def __init__(self, instruments: Iterable[Instrument]) -> None:
        """Index the instruments.

        Raises:
            InstrumentsFileError: two instruments share a form, so that a look-up would be ambiguous.
        """
        self._ordered = tuple(instruments)
        self._by_form: dict[str, Instrument] = {}
        for instrument in self._ordered:
            for field, form in (
                ("symbol", instrument.symbol),
                ("symbol", instrument.key),
                ("vendor_ticker", instrument.vendor_ticker),
            ):
                other = self._by_form.setdefault(form.upper(), instrument)
                if other is not instrument:
                    raise InstrumentsFileError(
                        f"{instrument.symbol}: {field} {form!r} is already a form of {other.symbol}"
                    )

    def get(self, symbol: str) -> Instrument:
        """Return the instrument of a display form, key or vendor ticker, in any case of letters.

        Raises:
            UnknownSymbol: no instrument has this form.
        """
        try:
            return self._by_form[symbol.strip().upper()]
        except (KeyError, AttributeError):
            raise UnknownSymbol(symbol, [each.symbol for each in self._ordered]) from None

    @property
    def keys(self) -> list[str]:
        """The keys, in the file's order."""
        return [each.key for each in self._ordered]

    @property
    def partitions(self) -> list[str]:
        """The distinct partitions, in the file's order."""
        return list(dict.fromkeys(each.partition for each in self._ordered))

    def of_partition(self, partition: str) -> list[Instrument]:
        """Return the instruments of a partition, in the file's order; empty for a partition that nobody has."""
        return [each for each in self._ordered if each.partition == partition]

    def __iter__(self) -> Iterator[Instrument]:
        return iter(self._ordered)

    def __len__(self) -> int:
        return len(self._ordered)

    def __contains__(self, symbol: object) -> bool:
        return isinstance(symbol, str) and symbol.strip().upper() in self._by_form


def parse_instruments(text: str, where: str) -> Instruments:
    """Parse the text of an instruments file (YAML: `instruments:` with a list of entries).

    `where` names the file in messages.

    Raises:
        InstrumentsFileError: the text is no YAML, or an entry is wrong; the message names every wrong entry and field.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InstrumentsFileError(f"{where} is not YAML: {error}") from None
    entries = data.get("instruments") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InstrumentsFileError(f"{where} must hold `instruments:` with a list of at least one entry")
    if isinstance(data, dict) and (unknown := sorted(str(name) for name in data if name != "instruments")):
        raise InstrumentsFileError(f"{where} holds unknown keys: {', '.join(unknown)}")
    instruments, wrong = [], []
    for number, entry in enumerate(entries, 1):
        try:
            instruments.append(Instrument.model_validate(entry))
        except ValidationError as error:
            wrong += [
                f"{_entry_name(number, entry)}, {_field(item)}: {_message(item)}"
                for item in error.errors()
                if item["type"] != "default_factory_not_called"  # follows from another error of the same entry
            ]
    if wrong:
        raise InstrumentsFileError(f"{where}: " + "; ".join(wrong))
    try:
        return Instruments(instruments)
    except InstrumentsFileError as error:
        raise InstrumentsFileError(f"{where}: {error}") from None


def _entry_name(number: int, entry: Any) -> str:
    symbol = entry.get("symbol") if isinstance(entry, dict) else None
    return f"entry {number} ({symbol})" if symbol is not None else f"entry {number}"


def _field(item: Any) -> str:
    return ".".join(str(part) for part in item["loc"]) or "entry"


def _message(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "string_type":  # YAML reads NO, ON, 1 and 2024-01-01 as something else than text
        message += f", not {item['input']!r} (write it in quotes)"
    elif item["type"] not in {"missing", "value_error"}:
        message += f", not {item['input']!r}"
    return message

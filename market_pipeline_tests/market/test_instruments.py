from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

import market_pipeline
from market_pipeline.errors import InstrumentsFileError, UnknownSymbol
from market_pipeline.market.instruments import parse_instruments

EURUSD = '{symbol: EUR/USD, asset_class: forex, vendor_ticker: "C:EURUSD", calendar: forex, history_start: 2014-01-01}'
BRK = (
    "{symbol: BRK.B, asset_class: stock, vendor_ticker: BRK.B, calendar: XNYS, history_start: 2013-01-01, thin_run: 9}"
)


def entries(*lines: str) -> str:
    return "instruments:\n" + "".join(f"  - {line}\n" for line in lines)


def test_the_packaged_file_parses() -> None:
    text = (Path(market_pipeline.__file__).parent / "instruments.yaml").read_text()
    instruments = parse_instruments(text, "instruments.yaml")
    assert len(instruments) == len(set(instruments.keys)) == len(instruments.partitions)
    assert instruments.get("EURUSD").price_basis == "bid"


def test_forms_and_defaults() -> None:
    instruments = parse_instruments(entries(EURUSD, BRK), "x.yaml")
    euro, berkshire = instruments
    assert (euro.key, euro.partition, euro.thin_run) == ("EURUSD", "EURUSD", 5)
    assert (berkshire.key, berkshire.partition, berkshire.thin_run) == ("BRK.B", "BRK.B", 9)
    assert euro.history_start == date(2014, 1, 1)
    for form in ("EUR/USD", "eurusd", "EURUSD", "c:eurusd", " eur/usd "):
        assert instruments.get(form) is euro
        assert form in instruments
    with pytest.raises(UnknownSymbol, match=r"'GBPUSD'.*EUR/USD, BRK.B"):
        instruments.get("GBPUSD")


def test_several_instruments_may_share_a_partition() -> None:
    shared = [line.replace("}", ", partition: majors}") for line in (EURUSD, EURUSD.replace("EUR", "GBP"))]
    instruments = parse_instruments(entries(*shared, BRK), "x.yaml")
    assert instruments.partitions == ["majors", "BRK.B"]
    assert [each.key for each in instruments.of_partition("majors")] == ["EURUSD", "GBPUSD"]
    assert instruments.of_partition("nobody") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not YAML"),
        ("", "must hold `instruments:`"),
        ("instruments: []", "at least one entry"),
        ("instruments: 5", "with a list"),
        (entries(EURUSD) + "instrument: []", "unknown keys: instrument"),
        (entries("5"), "entry 1, entry"),
        (entries(EURUSD.replace("forex, v", "forx, v")), r"entry 1 \(EUR/USD\), asset_class: .*'forx'"),
        (entries(EURUSD, BRK.replace("2013-01-01", "soon")), r"entry 2 \(BRK.B\), history_start: .*'soon'"),
        (entries(EURUSD.replace("C:EURUSD", "EURUSD")), "vendor_ticker 'EURUSD' of a forex must start with 'C:'"),
        (entries(BRK.replace("XNYS", "forex")), "calendar 'forex' does not fit a stock"),
        (entries(EURUSD.replace("calendar: forex", "calendar: XNYS")), "calendar 'XNYS' does not fit"),
        (entries(BRK.replace("}", ", ticks: yes}")), r"ticks: Extra inputs are not permitted"),
        (entries(BRK.replace("thin_run: 9", "thin_run: 0")), "thin_run: .*not 0"),
        (entries(BRK.replace("BRK.B,", "NO,", 1)), r"symbol: .*not False \(write it in quotes\)"),
        (entries(BRK.replace(", calendar: XNYS", "")), "calendar: Field required"),
        (entries(EURUSD, EURUSD), "EUR/USD: symbol 'EUR/USD' is already a form of EUR/USD"),
        (entries(EURUSD, BRK.replace("symbol: BRK.B", "symbol: EUR-USD")), "'EURUSD' is already a form of EUR/USD"),
        (entries(EURUSD, EURUSD.replace("symbol: EUR/USD", "symbol: EUR2")), "vendor_ticker 'C:EURUSD' is already"),
    ],
)
def test_a_wrong_file_is_refused_with_entry_and_field(text: str, says: str) -> None:
    with pytest.raises(InstrumentsFileError, match=says) as refused:
        parse_instruments(text, "x.yaml")
    assert str(refused.value).startswith("x.yaml")
    assert "default_factory" not in str(refused.value)


def test_every_wrong_entry_is_named_at_once() -> None:
    with pytest.raises(InstrumentsFileError) as refused:
        parse_instruments(entries(EURUSD.replace("C:", ""), BRK.replace("XNYS", "crypto")), "x.yaml")
    assert "entry 1 (EUR/USD)" in str(refused.value)
    assert "entry 2 (BRK.B)" in str(refused.value)

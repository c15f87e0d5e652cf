"""Bad input of every kind: one clear sentence that names what is wrong and what to do, and no secret in it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from market_pipeline.errors import (
    BadRange,
    BusAuthError,
    InstrumentsFileError,
    MarketPipelineError,
    SettingsError,
    StoreAuthError,
    Terminal,
    UnknownSymbol,
    VendorAuthError,
    VendorUnavailable,
)
from market_pipeline.settings import Settings, load_settings
from market_pipeline_tests.integration.world import World, day_range

DAYS = {"EURUSD": day_range("2024-03-04", "2024-03-04")}
TOMORROW = datetime.now(UTC).date() + timedelta(days=1)
WRONG = SecretStr("a-wrong-secret")


def changed(world: World, section: str, **values: object) -> World:
    part = getattr(world.settings, section).model_copy(update=values)
    return World(world.settings.model_copy(update={section: part}), world.nats, world.clickhouse, world.vendor)


@pytest.mark.parametrize(
    ("spoil", "wanted", "error", "sentence"),
    [
        (lambda w: w, {"EURSUD": DAYS["EURUSD"]}, UnknownSymbol, r"unknown symbol 'EURSUD': .*EUR/USD"),
        (
            lambda w: w,
            {"EURUSD": [(TOMORROW, TOMORROW + timedelta(days=1))]},
            BadRange,
            rf"EUR/USD: {TOMORROW} lies in the future",
        ),
        (
            lambda w: w,
            {"EURUSD": [(date(2024, 3, 5), date(2024, 3, 5))]},
            BadRange,
            r"EUR/USD: .*its end must lie after its start",
        ),
        (lambda w: changed(w, "vendor", api_key=WRONG), DAYS, VendorAuthError, r"POLYGON_API_KEY"),
        (lambda w: changed(w, "vendor", api_key=SecretStr("")), DAYS, VendorAuthError, r"POLYGON_API_KEY"),
        (
            lambda w: changed(w, "vendor", base_url="http://127.0.0.1:9"),
            DAYS,
            VendorUnavailable,
            r"127\.0\.0\.1:9|connect",
        ),
        (lambda w: changed(w, "nats", password=WRONG), DAYS, BusAuthError, r"MARKET_PIPELINE_NATS__PASSWORD"),
        (
            lambda w: changed(w, "clickhouse", password=WRONG),
            DAYS,
            StoreAuthError,
            r"MARKET_PIPELINE_CLICKHOUSE__PASSWORD",
        ),
    ],
    ids=["symbol", "future", "empty", "key", "no-key", "vendor-address", "nats-password", "clickhouse-password"],
)
def test_a_load_says_what_is_wrong(
    world: World,
    spoil: Callable[[World], World],
    wanted: dict[str, list[tuple[date, date]]],
    error: type[MarketPipelineError],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence) as raised:
        spoil(world).load(wanted)
    text = str(raised.value)
    assert "\n" not in text, "one sentence"
    for secret in (WRONG, world.settings.vendor.api_key, world.settings.clickhouse.password):
        assert secret.get_secret_value() not in text
    assert isinstance(raised.value, Terminal) or error is VendorUnavailable
    assert not [r for r in world.vendor.requests() if "/v2/aggs" in r.path], "nothing was asked of the vendor"


def test_a_malformed_instruments_file_names_entry_and_field(world: World, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('instruments: [{symbol: EUR/USD, asset_class: forx, vendor_ticker: "C:EURUSD", calendar: forex}]')
    broken = World(
        world.settings.model_copy(update={"instruments_file": file}), world.nats, world.clickhouse, world.vendor
    )
    with pytest.raises(InstrumentsFileError, match=r"mine\.yaml.*EUR/USD.*asset_class.*history_start"):
        broken.load(DAYS)


def test_a_wrong_setting_names_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MARKET_PIPELINE_CLICKHOUSE__PORT", "eight")
    with pytest.raises(SettingsError, match="MARKET_PIPELINE_CLICKHOUSE__PORT"):
        load_settings(tmp_path)


def test_a_settings_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "settings.json").chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_settings(tmp_path)


def test_secrets_do_not_show_in_settings(world: World) -> None:
    shown = repr(world.settings) + str(world.settings.model_dump())
    assert world.settings.clickhouse.password.get_secret_value() not in shown
    assert world.vendor.api_key not in shown


def test_the_vendors_own_variable_leaves_the_simulator(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """With POLYGON_API_KEY alone the real service is asked, whatever the stack wrote about its simulator."""
    monkeypatch.setenv("POLYGON_API_KEY", "real-key")
    settings: Settings = load_settings(world.settings.home)
    assert settings.vendor.base_url == "https://api.polygon.io"
    assert settings.vendor.api_key.get_secret_value() == "real-key"
    assert settings.vendor.rate == 5, "the free plan's rate, until told otherwise"

from pathlib import Path

import pytest
import structlog

from market_pipeline.errors import SettingsError
from market_pipeline.orchestration.resources import (
    BusResource,
    SettingsResource,
    StoresResource,
    VendorResource,
    platform_settings,
)
from market_pipeline.orchestration.run_log import MOST_LINES, service_log


def test_overrides_change_one_part_and_leave_the_rest(tmp_path: Path) -> None:
    settings = SettingsResource(home=str(tmp_path))
    plain = settings.load()
    merged = platform_settings(
        VendorResource(settings=settings, base_url="http://127.0.0.1:9"),
        BusResource(settings=settings, url="nats://127.0.0.1:9"),
        StoresResource(settings=settings, port=9, database="other"),
    )
    assert merged.vendor.base_url == "http://127.0.0.1:9"
    assert merged.vendor.plan == plain.vendor.plan
    assert merged.nats.url == "nats://127.0.0.1:9"
    assert (merged.clickhouse.port, merged.clickhouse.database) == (9, "other")
    assert merged.clickhouse.host == plain.clickhouse.host


def test_a_secret_of_the_settings_survives_an_override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_PIPELINE_CLICKHOUSE__PASSWORD", "hush")
    settings = SettingsResource(home=str(tmp_path))
    merged = platform_settings(StoresResource(settings=settings, port=9))
    assert merged.clickhouse.password.get_secret_value() == "hush"
    assert "hush" not in repr(merged)


def test_a_wrong_setting_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_PIPELINE_CLICKHOUSE__PORT", "many")
    with pytest.raises(SettingsError, match="MARKET_PIPELINE_CLICKHOUSE__PORT"):
        platform_settings(StoresResource(settings=SettingsResource(home=str(tmp_path))))


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, level: int, line: str) -> None:
        self.lines.append(line)

    def warning(self, line: str) -> None:
        self.lines.append(line)


def test_entries_of_the_rooms_are_copied_to_the_runs_log_and_only_during_the_step() -> None:
    before = structlog.get_config()["processors"]
    log = Log()
    with service_log(log):
        structlog.get_logger("history").info("probed", run_id="r", nats_ms=1.5)
        structlog.get_logger("history").debug("detail")
    structlog.get_logger("history").info("afterwards")
    assert log.lines == ["probed nats_ms=1.5"]
    assert structlog.get_config()["processors"] == before


def test_a_chatty_step_is_cut_and_says_so() -> None:
    log = Log()
    with service_log(log):
        for n in range(MOST_LINES + 50):
            structlog.get_logger("history").info("line", n=n)
    assert len(log.lines) == MOST_LINES + 1
    assert "the rest is in the step's stdout" in log.lines[-1]

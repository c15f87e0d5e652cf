"""What `market-pipeline services` shows."""

from __future__ import annotations

from rich.console import Console

from market_pipeline.breaker import Breakers
from market_pipeline.bus.registry import ServiceReport
from market_pipeline.cli.run import services_table
from market_pipeline.errors import StoreUnreachable
from market_pipeline.settings import BreakerSettings


def test_an_open_breaker_is_shown_and_a_closed_one_is_not() -> None:
    breakers = Breakers(BreakerSettings(failures=1))
    breakers.of("insert_history")
    live = breakers.of("insert_live")
    try:
        with live.attempt():
            raise StoreUnreachable("ClickHouse at 127.0.0.1:8123 does not answer")
    except StoreUnreachable:
        pass
    report = ServiceReport("bridge", "host-1", "waiting", 0.0, tuple(breakers.problems()), breakers.facts(), 0, "")
    console = Console(width=200, record=True)
    console.print(services_table([report]))
    shown = " ".join(console.export_text().split())
    assert "breaker_insert_live open" in shown
    assert "insert_live is away (ClickHouse at 127.0.0.1:8123 does not answer)" in shown
    assert "insert_history" not in shown

"""The rules of live bars as they are set."""

from __future__ import annotations

from datetime import timedelta

from market_pipeline.errors import SettingsError
from market_pipeline.market.live_facts import LiveRules
from market_pipeline.settings import LiveSettings

_MS = timedelta(milliseconds=1)


def live_rules(settings: LiveSettings) -> LiveRules:
    """Return the rules that `settings.live` asks for.

    Raises:
        SettingsError: they contradict each other.
    """
    try:
        return LiveRules(
            delay_ms=settings.delay // _MS, lateness_ms=settings.lateness // _MS, ahead_ms=settings.ahead // _MS
        )
    except ValueError as error:
        raise SettingsError(f"live.delay, live.lateness and live.ahead do not fit together: {error}") from error

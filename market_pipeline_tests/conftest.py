"""What holds for every test: property tests judge results, never times."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("market_pipeline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("market_pipeline")

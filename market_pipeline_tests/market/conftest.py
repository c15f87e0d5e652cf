"""Hypothesis for the market room: no deadline, for a shared machine is slow at times and that is no failure."""

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

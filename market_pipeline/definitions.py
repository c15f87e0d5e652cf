"""The code location: what `workspace.yaml` points at.

Loading reads the settings and the instruments file and nothing else: no server needs to be up. A wrong instruments file
raises InstrumentsFileError, whose sentence names every wrong entry.
"""

from __future__ import annotations

from market_pipeline.instruments_file import load_instruments
from market_pipeline.orchestration.build import build_definitions
from market_pipeline.settings import load_settings

defs = build_definitions(load_instruments(load_settings()))

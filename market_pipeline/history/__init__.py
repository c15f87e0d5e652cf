"""History: from a vendor's REST answers to checked bars of every timeframe, without Dagster.

`load_minutes`, `derive_bars`, `repair_gaps`, `reconcile_live` and `probe_all` are what orchestration/ and the CLI call.
"""

from market_pipeline.history.reports import (
    DeriveReport,
    LoadReport,
    ReconcileReport,
    RepairReport,
    SeriesCounts,
    SymbolLoad,
)
from market_pipeline.history.service import derive_bars, load_minutes, probe_all, reconcile_live, repair_gaps

__all__ = [
    "DeriveReport",
    "LoadReport",
    "ReconcileReport",
    "RepairReport",
    "SeriesCounts",
    "SymbolLoad",
    "derive_bars",
    "load_minutes",
    "probe_all",
    "reconcile_live",
    "repair_gaps",
]

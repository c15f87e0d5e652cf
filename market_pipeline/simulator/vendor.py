"""One simulated vendor: its state, keys, faults and journal, bundled."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from market_pipeline.simulator.faults import Faults
from market_pipeline.simulator.journal import Journal
from market_pipeline.simulator.plans import Plan, Plans
from market_pipeline.simulator.state import VendorState
from market_pipeline.simulator.stream.hub import StreamHub


@dataclass(frozen=True)
class Vendor:
    """Hold everything that requests and the control interface share."""

    state: VendorState
    plans: Plans
    stream: StreamHub
    faults: Faults = field(default_factory=Faults)
    journal: Journal = field(default_factory=Journal)
    gzip: bool = False

    @staticmethod
    def make(api_key: str, *, plan: Plan, seed: int = 0, state_file: Path | None = None, gzip: bool = False) -> Vendor:
        """Make a vendor with one key."""
        state, plans = VendorState(seed, state_file), Plans(api_key, plan)
        return Vendor(state, plans, StreamHub(state, plans), gzip=gzip)

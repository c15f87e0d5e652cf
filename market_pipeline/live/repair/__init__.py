"""Live repair: minutes that live time lacks, found, asked of the vendor, and derived again."""

from market_pipeline.live.repair.service import RepairService

__all__ = ["RepairService"]

"""The ledgers: what became of batches, what the vendor was asked, what is missing."""

from market_pipeline.stores.gap_ledger import GapLedger
from market_pipeline.stores.gap_merge import Gap
from market_pipeline.stores.ingest_ledger import IngestLedger, IngestRow, now_ms
from market_pipeline.stores.vendor_requests import VendorRequestLedger, VendorRequestRow

__all__ = ["Gap", "GapLedger", "IngestLedger", "IngestRow", "VendorRequestLedger", "VendorRequestRow", "now_ms"]

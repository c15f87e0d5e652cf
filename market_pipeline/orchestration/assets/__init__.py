"""The assets: minutes from the vendor, and every coarser timeframe derived from them."""

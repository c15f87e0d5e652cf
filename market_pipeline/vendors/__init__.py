"""Vendors of market data. `base` says what a vendor gives; each vendor has a folder of its own."""

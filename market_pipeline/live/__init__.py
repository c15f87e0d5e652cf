"""The long-running services: the bridge from the bus into the stores (collector and aggregator join it)."""

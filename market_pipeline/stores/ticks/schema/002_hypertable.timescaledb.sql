-- Chunks of a day, as the partitions have where TimescaleDB is not there. The index stands already.
SELECT create_hypertable('market_ticks', by_range('ts', INTERVAL '1 day'), create_default_indexes => false);

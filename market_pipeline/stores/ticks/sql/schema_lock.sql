-- One number for every change of the tick store's tables.
SELECT pg_advisory_xact_lock(hashtextextended('market_pipeline ticks', 0))

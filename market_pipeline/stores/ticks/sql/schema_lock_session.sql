SELECT pg_advisory_lock(hashtextextended('market_pipeline ticks', 0))

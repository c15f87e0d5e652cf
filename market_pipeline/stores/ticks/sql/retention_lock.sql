-- Held by the session that drops partitions: creating them goes on meanwhile.
SELECT pg_advisory_lock(hashtextextended('market_pipeline ticks retention', 0))

-- One row a batch. Stored beats rejected, and the first time it was stored has the true counts: delivered again, the
-- same batch finds its own rows and calls them unchanged.
SELECT *
FROM ingest_batches
WHERE batch_id IN {batch_ids:Array(UInt64)}
ORDER BY batch_id, outcome = 'stored' DESC, inserted_at
LIMIT 1 BY batch_id

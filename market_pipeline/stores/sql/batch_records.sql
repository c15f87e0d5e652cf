SELECT * FROM ingest_batches WHERE batch_id = {batch_id:UInt64} ORDER BY inserted_at

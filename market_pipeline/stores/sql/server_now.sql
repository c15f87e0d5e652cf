-- The clock that `ingested_at` is read from.
SELECT now64(3, 'UTC') AS now

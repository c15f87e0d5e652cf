-- Rows of probes are gone after an hour; the table exists before any migration, since a probe comes first.
CREATE TABLE IF NOT EXISTS probes
(
    mark UInt64,
    at DateTime DEFAULT now()
)
ENGINE = MergeTree
ORDER BY mark
TTL at + INTERVAL 1 HOUR

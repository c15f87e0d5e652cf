-- Observations of external datasets: few, and of decades, so that one partition holds them all. `revision` orders what
-- a source said of one value, `is_deleted` marks a tombstone.
CREATE TABLE IF NOT EXISTS @table(external_observations)
(
    dataset LowCardinality(String),
    series LowCardinality(String),
    ts DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    value Float64 CODEC(ZSTD(1)),
    revision UInt64 CODEC(ZSTD(1)),
    is_deleted UInt8 CODEC(ZSTD(1)),
    batch_id UInt64 CODEC(ZSTD(1)),
    ingested_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(ZSTD(1))
)
ENGINE = @engine(ReplacingMergeTree, revision, is_deleted)
ORDER BY (dataset, series, ts)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

@distributed(external_observations, cityHash64(dataset));

CREATE VIEW IF NOT EXISTS @view(external_final) AS
SELECT dataset, series, ts, value, revision, batch_id, ingested_at
FROM external_observations FINAL;

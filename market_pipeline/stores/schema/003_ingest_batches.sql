-- One row a batch and attempt; a batch that is delivered again may have several, see outcomes.sql.
CREATE TABLE IF NOT EXISTS @table(ingest_batches)
(
    batch_id UInt64,
    correlation_id String,
    run_id String,
    vendor_request_id String,
    stream LowCardinality(String),
    stream_seq UInt64,
    subject LowCardinality(String),
    symbol LowCardinality(String),
    timeframe LowCardinality(String),
    source LowCardinality(String),
    outcome LowCardinality(String),
    rows UInt32,
    new_rows UInt32,
    restated_rows UInt32,
    withdrawn_rows UInt32,
    unchanged_rows UInt32,
    superseded_rows UInt32,
    rejected_rows UInt32,
    digest UInt64,
    start_ts DateTime64(3, 'UTC'),
    end_ts DateTime64(3, 'UTC'),
    error String,
    fetched_at Nullable(DateTime64(3, 'UTC')),
    received_at Nullable(DateTime64(3, 'UTC')),
    decoded_at Nullable(DateTime64(3, 'UTC')),
    encoded_at Nullable(DateTime64(3, 'UTC')),
    published_at Nullable(DateTime64(3, 'UTC')),
    bridge_received_at Nullable(DateTime64(3, 'UTC')),
    inserted_at DateTime64(3, 'UTC'),
    INDEX by_run run_id TYPE bloom_filter GRANULARITY 1,
    INDEX by_time inserted_at TYPE minmax GRANULARITY 1
)
ENGINE = @engine(MergeTree)
PARTITION BY toYYYYMM(inserted_at)
ORDER BY batch_id
TTL toDateTime(inserted_at) + INTERVAL 90 DAY
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;

@distributed(ingest_batches, batch_id);

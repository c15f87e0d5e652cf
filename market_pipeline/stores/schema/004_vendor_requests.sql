-- What the vendor was asked and what came of it, empty answers too. A row stands for a request whose bars are proven
-- stored, or for one that failed.
CREATE TABLE IF NOT EXISTS @table(vendor_requests)
(
    symbol LowCardinality(String),
    root_run_id String,
    request_id UInt64,
    run_id String,
    start_ts DateTime64(3, 'UTC'),
    end_ts DateTime64(3, 'UTC'),
    requested_at DateTime64(3, 'UTC'),
    outcome LowCardinality(String),
    rows UInt32,
    bad_rows UInt32,
    pages UInt16,
    attempts UInt16,
    vendor_request_id String,
    error String,
    version UInt64
)
ENGINE = @engine(ReplacingMergeTree, version)
ORDER BY (symbol, root_run_id, request_id)
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;

@distributed(vendor_requests, cityHash64(symbol));

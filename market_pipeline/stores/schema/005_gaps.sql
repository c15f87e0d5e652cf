-- Minutes that the calendar expects and the store lacks, in runs without a break: `minutes` is their length.
CREATE TABLE IF NOT EXISTS @table(gaps)
(
    symbol LowCardinality(String),
    start_ts DateTime64(3, 'UTC'),
    end_ts DateTime64(3, 'UTC'),
    minutes UInt32,
    cause LowCardinality(String),
    state LowCardinality(String),
    attempts UInt16,
    first_seen DateTime64(3, 'UTC'),
    last_attempt Nullable(DateTime64(3, 'UTC')),
    note String,
    version UInt64,
    is_deleted UInt8
)
ENGINE = @engine(ReplacingMergeTree, version, is_deleted)
ORDER BY (symbol, start_ts)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

@distributed(gaps, cityHash64(symbol));

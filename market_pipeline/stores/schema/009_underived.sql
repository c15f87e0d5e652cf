-- Ranges whose minutes a repair has asked for and whose derived bars it has not yet brought into agreement with them: it
-- writes them before it asks and withdraws them after it has derived, so that whoever repairs next derives them if it
-- ended in between.
CREATE TABLE IF NOT EXISTS @table(underived)
(
    symbol LowCardinality(String),
    start_ts DateTime64(3, 'UTC'),
    end_ts DateTime64(3, 'UTC'),
    version UInt64,
    is_deleted UInt8
)
ENGINE = @engine(ReplacingMergeTree, version, is_deleted)
ORDER BY (symbol, start_ts, end_ts)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

@distributed(underived, cityHash64(symbol));

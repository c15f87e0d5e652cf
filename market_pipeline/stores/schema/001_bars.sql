-- Bars of every source lie side by side; the views of 002 say which of them wins. `revision` orders what one source
-- said of one bar, `is_deleted` marks a tombstone. Plain ZSTD: on real minutes Gorilla and FPC take 1.5 to 2 times the
-- space (EUR/USD 24.5 and 23.1 against 11.8 bytes a row for open, high, low, close and volume).
CREATE TABLE IF NOT EXISTS @table(bars)
(
    symbol LowCardinality(String),
    timeframe LowCardinality(String),
    ts DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    source LowCardinality(String),
    origin LowCardinality(String),
    open Float64 CODEC(ZSTD(1)),
    high Float64 CODEC(ZSTD(1)),
    low Float64 CODEC(ZSTD(1)),
    close Float64 CODEC(ZSTD(1)),
    volume Float64 CODEC(ZSTD(1)),
    vwap Nullable(Float64) CODEC(ZSTD(1)),
    trades UInt32 CODEC(ZSTD(1)),
    complete Bool CODEC(ZSTD(1)),
    revision UInt64 CODEC(ZSTD(1)),
    is_deleted UInt8 CODEC(ZSTD(1)),
    batch_id UInt64 CODEC(ZSTD(1)),
    ingested_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(ZSTD(1))
)
ENGINE = @engine(ReplacingMergeTree, revision, is_deleted)
PARTITION BY toYYYYMM(ts)
ORDER BY (symbol, timeframe, ts, source)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

@distributed(bars, cityHash64(symbol));

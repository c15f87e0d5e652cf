-- Live bars of one second: as bars and its views (001, 002), but many and soon forgotten. A day is a partition, which
-- the TTL drops whole. Minutes and everything coarser are made of ticks and minutes, never of these.
CREATE TABLE IF NOT EXISTS @table(bars_1s)
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
PARTITION BY toYYYYMMDD(ts)
ORDER BY (symbol, timeframe, ts, source)
TTL toDateTime(ts) + INTERVAL 7 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1;

@distributed(bars_1s, cityHash64(symbol));

-- Seconds have one source.
CREATE VIEW IF NOT EXISTS @view(bars_1s_ranked) AS
SELECT
    symbol, timeframe, ts, source, origin, open, high, low, close, volume, vwap, trades, complete, revision,
    batch_id, ingested_at,
    toInt8(0) AS rank
FROM bars_1s FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE VIEW IF NOT EXISTS @view(bars_1s_final) AS
SELECT
    symbol, timeframe, ts, source, origin, open, high, low, close, volume, vwap, trades, complete, revision,
    batch_id, ingested_at
FROM bars_1s_ranked;

-- As bar_digests.
CREATE VIEW IF NOT EXISTS @view(bar_1s_digests) AS
WITH
    toUInt64(toUnixTimestamp64Milli(ts)) AS w_ts,
    reinterpretAsUInt64(open) AS w_open,
    reinterpretAsUInt64(high) AS w_high,
    reinterpretAsUInt64(low) AS w_low,
    reinterpretAsUInt64(close) AS w_close,
    reinterpretAsUInt64(volume) AS w_volume,
    if(isNull(vwap), 0x7FF8000000000000, reinterpretAsUInt64(assumeNotNull(vwap))) AS w_vwap,
    toUInt64(trades) AS w_trades,
    toUInt64(complete) AS w_complete,
    toUInt64(is_deleted) AS w_is_deleted,
    0xE220A8397B1DCDAF * bitXor(w_ts, bitShiftRight(w_ts, 32))
        + 0x6E789E6AA1B965F5 * bitXor(w_open, bitShiftRight(w_open, 32))
        + 0x06C45D188009454F * bitXor(w_high, bitShiftRight(w_high, 32))
        + 0xF88BB8A8724C81ED * bitXor(w_low, bitShiftRight(w_low, 32))
        + 0x1B39896A51A8749B * bitXor(w_close, bitShiftRight(w_close, 32))
        + 0x53CB9F0C747EA2EB * bitXor(w_volume, bitShiftRight(w_volume, 32))
        + 0x2C829ABE1F4532E1 * bitXor(w_vwap, bitShiftRight(w_vwap, 32))
        + 0xC584133AC916AB3D * bitXor(w_trades, bitShiftRight(w_trades, 32))
        + 0x3EE5789041C98AC3 * bitXor(w_complete, bitShiftRight(w_complete, 32))
        + 0xF3B8488C368CB0A7 * bitXor(w_is_deleted, bitShiftRight(w_is_deleted, 32)) AS s,
    bitXor(s, bitShiftRight(s, 29)) * 0x657EECDD3CB13D09 AS r
SELECT
    symbol, timeframe, ts, source, revision, is_deleted, ingested_at,
    bitXor(r, bitShiftRight(r, 32)) AS digest
FROM bars_1s;

-- Every version of the bars that were ever replaced: what a reader had at a moment is found here and in bars. A first
-- version is not copied until another one replaces it. Both are then written, the earlier and the later: two writers
-- that replace the same bar at once each leave theirs, though only one of them stays in bars.
-- `known_at` is the `ingested_at` of the same version in bars. A version that is written again keeps its later
-- `known_at`: whoever asks what was known must never see more than that. There is no TTL: a question may be old.
CREATE TABLE IF NOT EXISTS @table(bar_revisions)
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
    known_at DateTime64(3, 'UTC') CODEC(ZSTD(1)),
    INDEX by_known known_at TYPE minmax GRANULARITY 1
)
ENGINE = @engine(ReplacingMergeTree, known_at)
PARTITION BY toYYYYMM(ts)
ORDER BY (symbol, timeframe, ts, source, revision)
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;

@distributed(bar_revisions, cityHash64(symbol));

-- Ranked as bars_ranked ranks: whoever changes the ranks there changes them here (a test compares the two).
CREATE VIEW IF NOT EXISTS @view(bar_revisions_ranked) AS
SELECT
    symbol, timeframe, ts, source, origin, open, high, low, close, volume, vwap, trades, complete, revision,
    is_deleted, batch_id, known_at,
    transform(
        source,
        ['live_aggregated', 'live_gap_filled', 'historical_aggregated', 'vendor_historical'],
        [4, 3, 2, 1],
        0
    ) AS rank
FROM bar_revisions FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- Every replacement, with what it replaced (`was_...`); it became known at `known_at`. Earlier versions that two
-- writers left at once stand in the order of their revisions.
CREATE VIEW IF NOT EXISTS @view(bar_changes) AS
SELECT
    symbol, timeframe, ts, source, known_at, batch_id, revision,
    multiIf(
        is_deleted = 1, 'withdrawn',
        was_deleted = 1, 'returned',
        complete AND NOT was_complete, 'completed',
        NOT complete AND was_complete, 'demoted',
        'restated'
    ) AS kind,
    was_known_at, was_complete, was_open, was_high, was_low, was_close, was_volume,
    complete, open, high, low, close, volume
FROM
(
    SELECT
        symbol, timeframe, ts, source, known_at, batch_id, revision, is_deleted, complete, open, high, low, close,
        volume,
        row_number() OVER w AS place,
        lagInFrame(is_deleted) OVER w AS was_deleted,
        lagInFrame(known_at) OVER w AS was_known_at,
        lagInFrame(complete) OVER w AS was_complete,
        lagInFrame(open) OVER w AS was_open,
        lagInFrame(high) OVER w AS was_high,
        lagInFrame(low) OVER w AS was_low,
        lagInFrame(close) OVER w AS was_close,
        lagInFrame(volume) OVER w AS was_volume
    FROM bar_revisions FINAL
    WINDOW w AS (PARTITION BY symbol, timeframe, ts, source ORDER BY revision ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)
    SETTINGS do_not_merge_across_partitions_select_final = 1
)
WHERE place > 1;

-- The winning bars of one series as a reader had them at `as_of`: of each source its last version known by then, of
-- these the winner as in winners.sql. What bars holds now and what bar_revisions kept are together all versions.
SELECT /* columns */ *
FROM
(
    SELECT *
    FROM
    (
        SELECT
            ts, source, origin, open, high, low, close, volume, vwap, trades, complete, revision, batch_id,
            ingested_at, toUInt8(0) AS is_deleted, rank
        FROM bars_ranked
        WHERE symbol = {symbol:String}
            AND timeframe = {timeframe:String}
            AND ts >= {start:DateTime64(3, 'UTC')}
            AND ts < {end:DateTime64(3, 'UTC')}
            AND ingested_at <= {as_of:DateTime64(3, 'UTC')}
        UNION ALL
        SELECT
            ts, source, origin, open, high, low, close, volume, vwap, trades, complete, revision, batch_id,
            known_at AS ingested_at, is_deleted, rank
        FROM bar_revisions_ranked
        WHERE symbol = {symbol:String}
            AND timeframe = {timeframe:String}
            AND ts >= {start:DateTime64(3, 'UTC')}
            AND ts < {end:DateTime64(3, 'UTC')}
            AND known_at <= {as_of:DateTime64(3, 'UTC')}
    )
    ORDER BY ts, source, revision DESC
    LIMIT 1 BY ts, source
)
WHERE is_deleted = 0
ORDER BY ts, complete DESC, rank DESC
LIMIT 1 BY ts
SETTINGS do_not_merge_across_partitions_select_final = 1

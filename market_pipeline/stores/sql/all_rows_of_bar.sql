-- Everything that any source ever said of one bar: what bars holds, and the versions that were replaced.
SELECT source, origin, open, high, low, close, volume, vwap, trades, complete, revision, is_deleted, batch_id, ingested_at
FROM
(
    SELECT
        source, origin, open, high, low, close, volume, vwap, trades, complete, revision, is_deleted, batch_id,
        ingested_at
    FROM bars
    WHERE symbol = {symbol:String} AND timeframe = {timeframe:String} AND ts = {ts:DateTime64(3, 'UTC')}
    UNION ALL
    SELECT
        source, origin, open, high, low, close, volume, vwap, trades, complete, revision, is_deleted, batch_id,
        known_at AS ingested_at
    FROM bar_revisions
    WHERE symbol = {symbol:String} AND timeframe = {timeframe:String} AND ts = {ts:DateTime64(3, 'UTC')}
)
ORDER BY source, revision DESC, ingested_at DESC
LIMIT 1 BY source, revision

-- Count and digest of one range's final rows, tombstones among them, which FINAL would hide.
SELECT count() AS rows, sum(digest) AS digest
FROM
(
    SELECT digest
    FROM bar_digests
    WHERE symbol = {symbol:String}
        AND timeframe = {timeframe:String}
        AND source = {source:String}
        AND ts BETWEEN {first:DateTime64(3, 'UTC')} AND {last:DateTime64(3, 'UTC')}
    ORDER BY ts, revision DESC, ingested_at DESC
    LIMIT 1 BY ts
)

-- What bars_final holds of one series: with symbol and timeframe fixed, a key of ts alone is the faster LIMIT BY.
SELECT /* columns */ *
FROM
(
    SELECT
        ts, source, origin, open, high, low, close, volume, vwap, trades, complete, revision, batch_id, ingested_at
    FROM bars_ranked
    WHERE symbol = {symbol:String}
        AND timeframe = {timeframe:String}
        AND ts >= {start:DateTime64(3, 'UTC')}
        AND ts < {end:DateTime64(3, 'UTC')}
    ORDER BY ts, complete DESC, rank DESC
    LIMIT 1 BY ts
)
-- Sorting what the partitions give in parallel takes half the time of merging them in order.
SETTINGS optimize_read_in_order = 0, do_not_merge_across_partitions_select_final = 1

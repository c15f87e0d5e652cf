-- A bar that several sources have counts once: seconds in a bitmap, a tenth of the work of uniqExact.
SELECT
    bars.symbol AS symbol,
    bars.timeframe AS timeframe,
    groupBitmap(toUInt32(toUnixTimestamp(bars.ts))) AS bars,
    min(bars.ts) AS first_ts,
    max(bars.ts) AS last_ts,
    max(bars.ingested_at) AS last_ingested_at
FROM bars FINAL
GROUP BY symbol, timeframe
ORDER BY symbol, timeframe
SETTINGS do_not_merge_across_partitions_select_final = 1

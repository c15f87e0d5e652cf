SELECT
    bars.symbol AS symbol,
    max(bars.ts) AS last_ts,
    maxOrNullIf(bars.ts, bars.complete) AS complete_ts,
    max(bars.ingested_at) AS last_ingested_at
FROM bars FINAL
WHERE bars.symbol IN {symbols:Array(String)} AND bars.timeframe = {timeframe:String}
GROUP BY symbol
ORDER BY symbol
SETTINGS do_not_merge_across_partitions_select_final = 1

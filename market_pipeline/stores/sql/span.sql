SELECT min(ts) AS first, max(ts) AS last, groupBitmap(toUInt32(toUnixTimestamp(ts))) AS rows
FROM bars FINAL
WHERE symbol = {symbol:String} AND timeframe = {timeframe:String}
HAVING rows > 0
SETTINGS do_not_merge_across_partitions_select_final = 1

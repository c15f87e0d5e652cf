-- Count and digest of the final rows of many ranges at once. `place` numbers every ts of every series; the ranges are
-- given by their places, so that one binary search (roundDown) finds the range of a row. The months only narrow what
-- the index selects.
WITH
    bitShiftLeft(
        toUInt64(
            (
                (indexOf({symbols:Array(String)}, symbol) - 1) * length({timeframes:Array(String)})
                + indexOf({timeframes:Array(String)}, timeframe) - 1
            ) * length({sources:Array(String)})
            + indexOf({sources:Array(String)}, source) - 1
        ),
        44
    ) + toUInt64(toUnixTimestamp64Milli(ts)) AS place,
    roundDown(place, {starts:Array(UInt64)}) AS start
SELECT start, count() AS rows, sum(digest) AS digest
FROM bar_digests
WHERE indexHint((symbol, timeframe, toYYYYMM(ts)) IN {months:Array(Tuple(String, String, UInt32))})
    AND symbol IN {symbols:Array(String)}
    AND timeframe IN {timeframes:Array(String)}
    AND source IN {sources:Array(String)}
    AND ts BETWEEN {first:DateTime64(3, 'UTC')} AND {last:DateTime64(3, 'UTC')}
    AND place >= start
    AND place <= transform(start, {starts:Array(UInt64)}, {ends:Array(UInt64)}, toUInt64(0))
GROUP BY start
SETTINGS final = 1, do_not_merge_across_partitions_select_final = 1

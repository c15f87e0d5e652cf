-- Count and digest of the final rows of many ranges at once. `place` numbers every ts of every series; the ranges are
-- given by their places, so that one binary search (roundDown) finds the range of a row. The hulls narrow what the
-- index selects: the part between the marks is repeated, with 1, 2, ... for 0, and joined by OR.
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
WHERE (
        /* hull */ (
            symbol IN {symbols_0:Array(String)}
            AND timeframe IN {timeframes_0:Array(String)}
            AND ts BETWEEN {first_0:DateTime64(3, 'UTC')} AND {last_0:DateTime64(3, 'UTC')}
        ) /* hull */
    )
    AND source IN {sources:Array(String)}
    AND place >= start
    AND place <= transform(start, {starts:Array(UInt64)}, {ends:Array(UInt64)}, toUInt64(0))
GROUP BY start
SETTINGS final = 1, do_not_merge_across_partitions_select_final = 1

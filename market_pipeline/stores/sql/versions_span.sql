-- First and last ts among all versions of the bars of a series, and when the first of them became known.
SELECT min(first) AS first, max(last) AS last, min(known_at) AS known_at, sum(rows) AS rows
FROM
(
    SELECT min(ts) AS first, max(ts) AS last, min(ingested_at) AS known_at, count() AS rows
    FROM bars
    WHERE symbol = {symbol:String} AND timeframe = {timeframe:String}
    HAVING rows > 0
    UNION ALL
    SELECT min(ts) AS first, max(ts) AS last, min(known_at) AS known_at, count() AS rows
    FROM bar_revisions
    WHERE symbol = {symbol:String} AND timeframe = {timeframe:String}
    HAVING rows > 0
)
HAVING rows > 0

-- What the view says of itself: its sources, highest first, and when they were set (0: they are those of 002).
-- On a cluster `bars` is Distributed over it.
SELECT
    extractAll(extract(as_select, 'transform\\(source, ?\\[([^\\]]*)\\], \\[4, ?3, ?2, ?1\\], 0\\)'), '\\w+') AS sources,
    toUInt64OrZero(extract(comment, 'precedence set at (\\d+)')) AS set_at,
    (
        SELECT max(engine_full)
        FROM system.tables
        WHERE database = currentDatabase() AND name = 'bars'
    ) AS bars_engine
FROM system.tables
WHERE database = currentDatabase() AND name = 'bars_ranked'

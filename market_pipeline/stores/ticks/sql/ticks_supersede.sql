-- Ticks that a collector of another epoch, an older one, sent as well are taken away one for one: of a value that one sent k times
-- and the other m times, max(k, m) stay.
WITH fresh AS (
    SELECT t.*, row_number() OVER same AS copy
    FROM market_ticks AS t
    WHERE
        t.symbol = %(symbol)s AND t.ts BETWEEN %(start)s AND %(until)s
        AND t.batch_id = ANY(%(fresh)s::bigint[])
    WINDOW same AS (
        PARTITION BY ts, kind, bid, ask, price, size, exchange, conditions ORDER BY batch_id, n
    )
),
older AS (
    SELECT t.*, row_number() OVER same AS copy
    FROM market_ticks AS t
    INNER JOIN tick_batches AS b ON t.batch_id = b.batch_id
    WHERE
        t.symbol = %(symbol)s AND t.ts BETWEEN %(start)s AND %(until)s
        AND b.epoch <> %(epoch)s
        AND b.seq < (SELECT min(seq) FROM tick_batches WHERE batch_id = ANY(%(fresh)s::bigint[]))
    WINDOW same AS (
        PARTITION BY t.ts, t.kind, t.bid, t.ask, t.price, t.size, t.exchange, t.conditions ORDER BY b.seq, t.n
    )
),
doubled AS (
    SELECT older.batch_id, older.n
    FROM older
    INNER JOIN fresh ON
        older.ts = fresh.ts
        AND older.kind = fresh.kind
        AND older.copy = fresh.copy
        AND older.bid IS NOT DISTINCT FROM fresh.bid
        AND older.ask IS NOT DISTINCT FROM fresh.ask
        AND older.price IS NOT DISTINCT FROM fresh.price
        AND older.size IS NOT DISTINCT FROM fresh.size
        AND older.exchange IS NOT DISTINCT FROM fresh.exchange
        AND older.conditions IS NOT DISTINCT FROM fresh.conditions
),
gone AS (
    DELETE FROM market_ticks AS t USING doubled
    WHERE
        t.symbol = %(symbol)s AND t.ts BETWEEN %(start)s AND %(until)s
        AND t.batch_id = doubled.batch_id AND t.n = doubled.n
    RETURNING t.batch_id
),
lost AS (SELECT batch_id, count(*)::integer AS ticks FROM gone GROUP BY batch_id),
told AS (
    UPDATE tick_batches AS b SET superseded = b.superseded + lost.ticks
    FROM lost WHERE b.batch_id = lost.batch_id
    RETURNING lost.ticks
)
SELECT coalesce(sum(ticks), 0)::bigint FROM told

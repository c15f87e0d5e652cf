SELECT last.*
FROM tick_epochs AS known
CROSS JOIN LATERAL (
    SELECT
        t.symbol, t.ts, t.kind::text AS kind, t.bid, t.ask, t.price, t.size, t.exchange, t.conditions, t.received_at,
        t.batch_id, t.n
    FROM market_ticks AS t
    WHERE t.symbol = known.symbol
    ORDER BY t.ts DESC, t.received_at DESC, t.n DESC
    LIMIT 1
) AS last
WHERE %(symbols)s::text[] IS NULL OR known.symbol = ANY(%(symbols)s::text[])
ORDER BY last.symbol

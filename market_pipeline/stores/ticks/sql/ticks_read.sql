-- CSV: PostgreSQL writes a double so that reading it gives the same bits, and polars reads it many rows at a time.
COPY (
    SELECT
        floor(extract(EPOCH FROM t.ts) * 1000)::bigint, t.kind, t.bid, t.ask, t.price, t.size,
        -- a letter before, so that empty text and null stay apart
        '=' || t.exchange, '=' || t.conditions,
        floor(extract(EPOCH FROM t.received_at) * 1000)::bigint, t.batch_id, t.n
    FROM market_ticks AS t
    -- a batch's line may be gone before its ticks are
    LEFT JOIN tick_batches AS b ON t.batch_id = b.batch_id
    WHERE t.symbol = %(symbol)s AND t.ts >= %(start)s AND t.ts < %(end)s
    ORDER BY t.ts, b.first_received, b.seq, t.n
) TO STDOUT (FORMAT CSV, NULL '\N')

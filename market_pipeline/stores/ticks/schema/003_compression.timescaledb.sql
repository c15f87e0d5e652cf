-- Ticks arrive at most 48 hours late (the stream keeps them no longer): older chunks are compressed.
-- The Apache edition has no compression and says so with feature_not_supported; another version may know other names.
-- Then ticks stay as they are: compression saves space, nothing depends on it.
DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM pg_proc WHERE proname = 'add_columnstore_policy') THEN -- since TimescaleDB 2.18
        ALTER TABLE market_ticks SET (
            timescaledb.enable_columnstore = true,
            timescaledb.segmentby = 'symbol',
            timescaledb.orderby = 'ts, batch_id, n'
        );
        CALL add_columnstore_policy('market_ticks', after => INTERVAL '3 days', if_not_exists => true);
    ELSE
        ALTER TABLE market_ticks SET (
            timescaledb.compress = true,
            timescaledb.compress_segmentby = 'symbol',
            timescaledb.compress_orderby = 'ts, batch_id, n'
        );
        PERFORM add_compression_policy('market_ticks', INTERVAL '3 days', if_not_exists => true);
    END IF;
EXCEPTION WHEN feature_not_supported OR invalid_parameter_value OR undefined_function THEN
    RAISE WARNING 'ticks are not compressed: %', SQLERRM;
END
$$;

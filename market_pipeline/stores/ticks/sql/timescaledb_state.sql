SELECT
    EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb') AS available,
    EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'timescaledb') AS installed,
    (SELECT relkind::text FROM pg_class WHERE oid = to_regclass('market_ticks')) AS relkind

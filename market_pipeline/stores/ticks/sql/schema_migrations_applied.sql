SELECT version, name, checksum FROM tick_schema_migrations ORDER BY version

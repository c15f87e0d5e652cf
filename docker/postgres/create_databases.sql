-- Runs once, when the volume is empty. Dagster's event log and the ticks have a database and an owner each, who cannot
-- enter the other's. The passwords come from the environment and never stand on a command line.
\getenv market_password MARKET_POSTGRES_PASSWORD
\getenv dagster_password DAGSTER_POSTGRES_PASSWORD

CREATE ROLE market LOGIN PASSWORD :'market_password';
CREATE ROLE dagster LOGIN PASSWORD :'dagster_password';

-- From template0: the image puts its extension into template1, and its worker may be connected there.
CREATE DATABASE market OWNER market TEMPLATE template0;
CREATE DATABASE dagster OWNER dagster TEMPLATE template0;
REVOKE CONNECT, TEMPORARY ON DATABASE market, dagster FROM PUBLIC;

\connect market
CREATE EXTENSION timescaledb;

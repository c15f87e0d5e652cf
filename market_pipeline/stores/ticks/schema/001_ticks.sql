-- Ticks have no key: exact repeats are real. What must not come twice is the batch that brings them.
CREATE TABLE market_ticks (
    ts          timestamptz(3)   NOT NULL, -- the vendor's time of the event
    received_at timestamptz(3)   NOT NULL, -- when the collector had it
    batch_id    bigint           NOT NULL,
    bid         double precision,
    ask         double precision,
    price       double precision,
    size        double precision,
    n           integer          NOT NULL, -- place in the batch, from 0
    kind        "char"           NOT NULL, -- q: quote, t: trade
    symbol      text             NOT NULL,
    exchange    text,
    conditions  text
) @by_day;

CREATE INDEX market_ticks_symbol_ts ON market_ticks (symbol, ts);

-- One row a stored batch, written in the transaction that stores its ticks.
-- Ticks of the batch that are stored: rows - superseded.
CREATE TABLE tick_batches (
    batch_id       bigint         PRIMARY KEY,
    seq            bigint         GENERATED ALWAYS AS IDENTITY, -- order of storing
    epoch          bigint         NOT NULL, -- of the lease under which the collector worked
    first_ts       timestamptz(3) NOT NULL,
    last_ts        timestamptz(3) NOT NULL,
    first_received timestamptz(3) NOT NULL,
    stored_at      timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    rows           integer        NOT NULL,
    superseded     integer        NOT NULL DEFAULT 0, -- ticks that a collector of a later epoch sent as well
    symbol         text           NOT NULL,
    collector_id   text           NOT NULL,
    session_id     text           NOT NULL,
    correlation_id text           NOT NULL
);

CREATE INDEX tick_batches_symbol_last_ts ON tick_batches (symbol, last_ts);

-- The collector that reigns over a symbol. Its row is locked by whoever stores ticks of the symbol.
CREATE TABLE tick_epochs (
    symbol        text           PRIMARY KEY,
    epoch         bigint         NOT NULL,
    first_ts      timestamptz(3),          -- first tick of the first batch of the epoch
    overlap_until timestamptz(3)           -- last tick of older epochs: until then both may have sent the same tick
);

-- Time in which ticks may have been lost, [start_ts, end_ts). A loss that goes on is recorded again with a later end.
CREATE TABLE tick_losses (
    symbol       text           NOT NULL,
    start_ts     timestamptz(3) NOT NULL,
    end_ts       timestamptz(3) NOT NULL CHECK (end_ts > start_ts),
    cause        text           NOT NULL,
    session_id   text           NOT NULL,
    collector_id text           NOT NULL,
    noted_at     timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (symbol, start_ts, cause, session_id, collector_id)
);

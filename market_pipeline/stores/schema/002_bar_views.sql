-- The one place where sources are ranked. Timeframes of 5m and more have the one source `derived`, which needs none.
-- A ts lies in one partition, so FINAL need not merge across them.
CREATE VIEW IF NOT EXISTS @view(bars_ranked) AS
SELECT
    symbol, timeframe, ts, source, origin, open, high, low, close, volume, vwap, trades, complete, revision,
    batch_id, ingested_at,
    transform(
        source,
        ['live_aggregated', 'live_gap_filled', 'historical_aggregated', 'vendor_historical'],
        [4, 3, 2, 1],
        0
    ) AS rank
FROM bars FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- The read view: of each symbol, timeframe and ts the winning bar. An incomplete bar never beats a complete one.
-- Filters on symbol, timeframe and ts reach the primary key of bars through the LIMIT BY.
CREATE VIEW IF NOT EXISTS @view(bars_final) AS
SELECT
    symbol, timeframe, ts, source, origin, open, high, low, close, volume, vwap, trades, complete, revision,
    batch_id, ingested_at
FROM bars_ranked
ORDER BY symbol, timeframe, ts, complete DESC, rank DESC
LIMIT 1 BY symbol, timeframe, ts;

-- The digest of each stored row, as market/digest.py defines it; read with `SETTINGS final = 1` for final rows.
CREATE VIEW IF NOT EXISTS @view(bar_digests) AS
WITH
    toUInt64(toUnixTimestamp64Milli(ts)) AS w_ts,
    reinterpretAsUInt64(open) AS w_open,
    reinterpretAsUInt64(high) AS w_high,
    reinterpretAsUInt64(low) AS w_low,
    reinterpretAsUInt64(close) AS w_close,
    reinterpretAsUInt64(volume) AS w_volume,
    if(isNull(vwap), 0x7FF8000000000000, reinterpretAsUInt64(assumeNotNull(vwap))) AS w_vwap,
    toUInt64(trades) AS w_trades,
    toUInt64(complete) AS w_complete,
    toUInt64(is_deleted) AS w_is_deleted,
    0xE220A8397B1DCDAF * bitXor(w_ts, bitShiftRight(w_ts, 32))
        + 0x6E789E6AA1B965F5 * bitXor(w_open, bitShiftRight(w_open, 32))
        + 0x06C45D188009454F * bitXor(w_high, bitShiftRight(w_high, 32))
        + 0xF88BB8A8724C81ED * bitXor(w_low, bitShiftRight(w_low, 32))
        + 0x1B39896A51A8749B * bitXor(w_close, bitShiftRight(w_close, 32))
        + 0x53CB9F0C747EA2EB * bitXor(w_volume, bitShiftRight(w_volume, 32))
        + 0x2C829ABE1F4532E1 * bitXor(w_vwap, bitShiftRight(w_vwap, 32))
        + 0xC584133AC916AB3D * bitXor(w_trades, bitShiftRight(w_trades, 32))
        + 0x3EE5789041C98AC3 * bitXor(w_complete, bitShiftRight(w_complete, 32))
        + 0xF3B8488C368CB0A7 * bitXor(w_is_deleted, bitShiftRight(w_is_deleted, 32)) AS s,
    bitXor(s, bitShiftRight(s, 29)) * 0x657EECDD3CB13D09 AS r
SELECT
    symbol, timeframe, ts, source, revision, is_deleted, ingested_at,
    bitXor(r, bitShiftRight(r, 32)) AS digest
FROM bars;

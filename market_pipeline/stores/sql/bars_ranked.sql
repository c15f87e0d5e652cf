-- bars_ranked as 002 created it, with the ranks that are set. A later migration that changes the view changes this too.
-- The view itself remembers when they were set: window_revisions.sql reads that.
CREATE OR REPLACE VIEW @view(bars_ranked) AS
SELECT
    symbol, timeframe, ts, source, origin, open, high, low, close, volume, vwap, trades, complete, revision,
    batch_id, ingested_at,
    transform(
        source,
        ['/* first */', '/* second */', '/* third */', '/* fourth */'],
        [4, 3, 2, 1],
        0
    ) AS rank
FROM bars FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1
COMMENT 'precedence set at /* set_at */'

-- bar_revisions_ranked as 008 created it, with the ranks that are set.
CREATE OR REPLACE VIEW @view(bar_revisions_ranked) AS
SELECT
    symbol, timeframe, ts, source, origin, open, high, low, close, volume, vwap, trades, complete, revision,
    is_deleted, batch_id, known_at,
    transform(
        source,
        ['/* first */', '/* second */', '/* third */', '/* fourth */'],
        [4, 3, 2, 1],
        0
    ) AS rank
FROM bar_revisions FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1

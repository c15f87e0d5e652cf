-- The last word on each value near a batch, tombstones included. Tombstones are found by LIMIT BY: FINAL hides them.
SELECT series, ts, value, revision, is_deleted
FROM external_observations
WHERE dataset = {dataset:String}
    AND series IN {series:Array(String)}
    AND ts BETWEEN {first:DateTime64(3, 'UTC')} AND {last:DateTime64(3, 'UTC')}
ORDER BY series, ts, revision DESC, ingested_at DESC
LIMIT 1 BY series, ts

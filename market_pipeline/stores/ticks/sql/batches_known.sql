SELECT batch_id FROM tick_batches WHERE batch_id = ANY(%(batch_ids)s)

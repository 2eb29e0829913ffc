-- Cancel every live job of a batch: see the function pgqueue.cancel_batch. Answers how many ended at once, NULL when there is no such batch.
--
-- Parameters: batch_id.
SELECT pgqueue.cancel_batch(%(batch_id)s::bigint)

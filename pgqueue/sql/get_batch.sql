-- One batch and its counts.
--
-- Parameters: batch_id.
SELECT b.id, b.name, b.total, b.completed, b.dead, b.cancelled, b.created_at, b.finished_at
FROM pgqueue.batches b WHERE b.id = %(batch_id)s::bigint

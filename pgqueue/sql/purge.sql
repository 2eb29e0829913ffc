-- Delete a queue's waiting jobs for good: see the function pgqueue.purge.
--
-- Parameters: queue.
SELECT pgqueue.purge(%(queue)s::text)

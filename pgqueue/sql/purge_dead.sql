-- Delete dead letters for good: see the function pgqueue.purge_dead. Answers how many.
--
-- Parameters: queue: NULL for any.
SELECT pgqueue.purge_dead(%(queue)s::text)

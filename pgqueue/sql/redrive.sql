-- Retry many dead letters, oldest first: see the function pgqueue.redrive. Answers how many.
--
-- Parameters: queue, task: NULL for any; limit.
SELECT pgqueue.redrive(queue => %(queue)s::text, task => %(task)s::text, max_jobs => %(limit)s::integer)

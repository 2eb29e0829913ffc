-- Where these jobs are, for who watches them.
--
-- Parameters: ids.
-- Index: jobs_pkey and the primary key of each partition of history.
SELECT id, queue, state, attempt, progress::text, cancel_requested, finished_at
FROM pgqueue.all_jobs
WHERE id = ANY (%(ids)s::bigint[])

-- Jobs, newest id first, a page at a time.
--
-- Parameters: queue, task, state: NULL for any; before: an id to go on from, NULL for the newest; limit.
SELECT id, queue, task, state, payload::text, priority, attempt, max_attempts, run_at, created_at, started_at, finished_at,
    lease_until, worker, cancel_requested, timeout, unique_key, progress::text, result::text, errors::text, meta::text,
    group_key, batch_id, depends_on, pending
FROM pgqueue.all_jobs
WHERE (%(queue)s::text IS NULL OR queue = %(queue)s) AND (%(task)s::text IS NULL OR task = %(task)s)
  AND (%(state)s::text IS NULL OR state = %(state)s) AND (%(before)s::bigint IS NULL OR id < %(before)s)
ORDER BY id DESC
LIMIT %(limit)s

-- One job, live or finished, as people see it.
--
-- Parameters: job_id.
-- Index: jobs_pkey and the primary key of each partition of history.
SELECT id, queue, task, state, payload::text, priority, attempt, max_attempts, run_at, created_at, started_at, finished_at,
    lease_until, worker, cancel_requested, timeout, unique_key, progress::text, result::text, errors::text, meta::text,
    group_key, batch_id, depends_on, pending
FROM pgqueue.all_jobs
WHERE id = %(job_id)s::bigint

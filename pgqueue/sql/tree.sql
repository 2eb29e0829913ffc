-- A job (or a batch), all that it depends on and all that depend on it, directly or not: see the function pgqueue.related.
-- Bounded: at most 1,000 jobs.
--
-- Parameters: job_id.
-- Index: the primary keys, and the indexes on batch_id and depends_on of jobs and history.
SELECT a.id, a.queue, a.task, a.state, a.payload::text, a.priority, a.attempt, a.max_attempts, a.run_at, a.created_at, a.started_at, a.finished_at,
    a.lease_until, a.worker, a.cancel_requested, a.timeout, a.unique_key, a.progress::text, a.result::text, a.errors::text, a.meta::text,
    a.group_key, a.batch_id, a.depends_on, a.pending
FROM pgqueue.all_jobs a
WHERE a.id = ANY (ARRAY(SELECT pgqueue.related(%(job_id)s::bigint)))
ORDER BY a.id
LIMIT 1000

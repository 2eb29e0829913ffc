-- The jobs that a job depends on; for a batch among them, all the jobs of that batch.
--
-- Parameters: job_id.
-- Index: the primary keys and the batch_id indexes of jobs and history. Two lookups, not an OR, which no index serves.
WITH upstream AS MATERIALIZED (
    SELECT u.id FROM pgqueue.all_jobs me CROSS JOIN LATERAL unnest(me.depends_on) AS u(id) WHERE me.id = %(job_id)s::bigint
), found AS (
    SELECT a.* FROM pgqueue.all_jobs a WHERE a.id = ANY (ARRAY(SELECT u.id FROM upstream u))
    UNION ALL
    SELECT a.* FROM pgqueue.all_jobs a
    WHERE a.batch_id = ANY (ARRAY(SELECT u.id FROM upstream u)) AND a.id <> ALL (ARRAY(SELECT u.id FROM upstream u))
)
SELECT f.id, f.queue, f.task, f.state, f.payload::text, f.priority, f.attempt, f.max_attempts, f.run_at, f.created_at, f.started_at, f.finished_at,
    f.lease_until, f.worker, f.cancel_requested, f.timeout, f.unique_key, f.progress::text, f.result::text, f.errors::text, f.meta::text,
    f.group_key, f.batch_id, f.depends_on, f.pending
FROM found f
ORDER BY f.id

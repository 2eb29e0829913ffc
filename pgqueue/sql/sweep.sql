-- Recover what dead workers held: the jobs of expired leases go back at once, or to history when their attempts are
-- used up (dead) or somebody asked to cancel them (cancelled).
--
-- Parameters: limit: leases per sweep; settle: false to leave those alone whose end would be told to a batch or to followers.
-- Index: leases is a few rows per worker; jobs_pkey for their jobs.
-- Guard: the lease is expired and locked here; a job is touched only while it still runs under that lease's token.
-- Locks: leases first, then jobs by id, both SKIP LOCKED: a finish or a renewal that is just landing wins, and a job that
--   somebody holds keeps no other from being recovered. Then, without skipping, batches and followers of what ends: when
--   somebody holds one of those, the caller's lock_timeout ends the sweep, and it says settle = false.
-- Answers (id, queue, task, attempt, state, worker) of every job it moved.
WITH expired AS MATERIALIZED (
    SELECT l.token, l.worker, l.job_ids FROM pgqueue.leases l
    WHERE l.lease_until <= now()
    ORDER BY l.lease_until LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), lost AS MATERIALIZED (
    SELECT j.id, j.lease_token, j.cancel_requested OR j.attempt >= j.max_attempts AS ends, e.worker,
        jsonb_build_object('attempt', j.attempt, 'type', 'LeaseExpired', 'at', now(), 'message',
            format('the lease of worker %%s ran out: it died, was cut off, or could not renew', e.worker)) AS error
    FROM pgqueue.jobs j JOIN expired e ON j.lease_token = e.token
    WHERE j.id = ANY (ARRAY(SELECT unnest(x.job_ids) FROM expired x)) AND j.state = 'running'
      AND (%(settle)s::boolean OR NOT ((j.cancel_requested OR j.attempt >= j.max_attempts) AND (j.has_followers OR j.batch_id IS NOT NULL)))
    ORDER BY j.id
    FOR NO KEY UPDATE OF j SKIP LOCKED
), left_behind AS MATERIALIZED (  -- somebody holds it (a cancel in an open transaction): its lease stays for the next sweep
    SELECT j.lease_token
    FROM pgqueue.jobs j JOIN expired e ON j.lease_token = e.token
    WHERE j.id = ANY (ARRAY(SELECT unnest(x.job_ids) FROM expired x)) AND j.state = 'running'
      AND NOT EXISTS (SELECT FROM lost l WHERE l.id = j.id)
), gone AS (
    DELETE FROM pgqueue.jobs j USING lost
    WHERE j.id = ANY (ARRAY(SELECT l.id FROM lost l WHERE l.ends)) AND j.id = lost.id AND j.lease_token = lost.lease_token
    RETURNING j.*, lost.error
), landed AS (
    INSERT INTO pgqueue.history AS h (id, run_at, created_at, started_at, lease_token, state, priority, attempt, max_attempts,
        queue, task, payload, timeout, unique_key, worker, progress, errors, meta, group_key, batch_id, depends_on)
    SELECT g.id, g.run_at, g.created_at, g.started_at, g.lease_token,
        CASE WHEN g.cancel_requested THEN 'cancelled' ELSE 'dead' END::pgqueue.job_state, g.priority, g.attempt, g.max_attempts,
        g.queue, g.task, g.payload, g.timeout, g.unique_key, g.worker, g.progress, coalesce(g.errors, '[]') || g.error, g.meta,
        g.group_key, g.batch_id, g.depends_on
    FROM gone g
    RETURNING h.id, h.queue, h.task, h.attempt, h.state::text, h.worker
), back AS (
    UPDATE pgqueue.jobs j
    SET state = 'available', lease_token = NULL, lease_until = NULL, worker = NULL,
        errors = CASE WHEN jsonb_array_length(j.errors) >= 50 THEN j.errors - 0 ELSE coalesce(j.errors, '[]') END || lost.error
    FROM lost
    WHERE j.id = ANY (ARRAY(SELECT l.id FROM lost l WHERE NOT l.ends)) AND j.id = lost.id AND j.lease_token = lost.lease_token
    RETURNING j.id, j.queue, j.task, j.attempt, j.state::text, lost.worker
), ended AS (
    DELETE FROM pgqueue.leases l USING expired e
    WHERE l.token = ANY (ARRAY(SELECT x.token FROM expired x)) AND l.token = e.token
      AND NOT EXISTS (SELECT FROM left_behind b WHERE b.lease_token = l.token)
), settled AS (  -- as in finish.sql
    SELECT s.id FROM (SELECT array_agg(g.id) AS ids FROM gone g WHERE g.has_followers OR g.batch_id IS NOT NULL) linked
    CROSS JOIN LATERAL (SELECT count(*) FROM landed WHERE linked.ids IS NOT NULL) AS first
    CROSS JOIN LATERAL pgqueue.settle(linked.ids) AS s(id)
    WHERE linked.ids IS NOT NULL
)
SELECT * FROM landed UNION ALL SELECT * FROM back UNION ALL SELECT s.id, NULL, NULL, NULL, NULL, NULL FROM settled s
UNION ALL  -- never any: for those who sleep
SELECT NULL, again.queue, NULL, NULL, NULL, NULL FROM (SELECT DISTINCT b.queue FROM back b) again WHERE pgqueue.ring(again.queue, true) IS NULL

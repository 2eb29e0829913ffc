-- Land a batch of outcomes: jobs leave for history, or go back to wait.
--
-- Parameters: ids, tokens, verdicts, results, errors, delays: parallel arrays, one element per outcome, sorted by id.
--   verdict: completed | dead | cancelled | retry (back after the delay) | pass (the same, at the end of its key's line) |
--   snooze (as retry, attempt refunded) |
--   release (back at once or after the delay, attempt refunded); all but the first three end as cancelled when somebody asked. result, error: JSON text or NULL; delay: seconds.
--   A NULL instead of an array: all completed, no results, no errors, no delays.
--   done_tokens: leases with no other job left (deleted); open_tokens: the others.
-- Index: jobs_pkey, leases_pkey (`= ANY` keeps the planner from walking a whole index for a hash join: under a held snapshot
--   every lease there ever was is still in it).
-- Guard: the row's token. A row that is not running under this token is left alone.
-- Locks: leases first, by token, then jobs by id; a sweep passes over a lease that is locked here.
-- Answers the ids that did not land, with their tokens: those leases are lost. Nothing in the good case.
WITH done AS MATERIALIZED (
    SELECT l.token FROM pgqueue.leases l WHERE l.token = ANY (%(done_tokens)s::bigint[]) ORDER BY l.token FOR UPDATE
), held AS MATERIALIZED (
    SELECT l.token FROM pgqueue.leases l WHERE l.token = ANY (%(open_tokens)s::bigint[]) ORDER BY l.token FOR KEY SHARE
), outcome AS MATERIALIZED (
    SELECT o.id, o.token, coalesce(o.verdict, 'completed') AS verdict, o.result, o.error, coalesce(o.delay, 0) AS delay,
        CASE WHEN o.verdict = 'pass' THEN nextval('pgqueue.jobs_id_seq') END AS place  -- behind whatever was enqueued so far
    FROM unnest(%(ids)s::bigint[], %(tokens)s::bigint[], %(verdicts)s::text[], %(results)s::text[], %(errors)s::text[],
                %(delays)s::float8[]) AS o(id, token, verdict, result, error, delay)
    WHERE (SELECT count(*) FROM done) + (SELECT count(*) FROM held) >= 0  -- the leases are locked before any job
), kept AS MATERIALIZED (  -- who may go back is decided under the row's lock: a cancel may be on its way
    SELECT j.id, j.cancel_requested
    FROM pgqueue.jobs j JOIN outcome o ON o.id = j.id AND o.token = j.lease_token
    WHERE j.id = ANY (%(ids)s::bigint[]) AND j.state = 'running' AND o.verdict IN ('retry', 'pass', 'snooze', 'release')
    ORDER BY j.id
    FOR NO KEY UPDATE OF j
), gone AS (
    DELETE FROM pgqueue.jobs j USING outcome o LEFT JOIN kept k ON k.id = o.id
    WHERE j.id = ANY (%(ids)s::bigint[]) AND j.id = o.id AND j.lease_token = o.token AND j.state = 'running'
      AND (o.verdict IN ('completed', 'dead', 'cancelled') OR k.cancel_requested)
    RETURNING j.id, j.run_at, j.created_at, j.started_at, j.lease_token, j.priority, j.attempt, j.max_attempts, j.queue, j.task,
        j.payload, j.timeout, j.unique_key, j.worker, j.progress, j.meta, j.group_key, j.batch_id, j.depends_on, j.has_followers,
        CASE WHEN o.verdict IN ('completed', 'dead') THEN o.verdict ELSE 'cancelled' END::pgqueue.job_state AS state, o.result::jsonb AS result,
        CASE WHEN o.error IS NULL THEN j.errors ELSE coalesce(j.errors, '[]') || o.error::jsonb END AS errors
), landed AS (
    INSERT INTO pgqueue.history AS h (id, run_at, created_at, started_at, lease_token, state, priority, attempt, max_attempts,
        queue, task, payload, timeout, unique_key, worker, progress, errors, meta, result, group_key, batch_id, depends_on)
    SELECT g.id, g.run_at, g.created_at, g.started_at, g.lease_token, g.state, g.priority, g.attempt, g.max_attempts,
        g.queue, g.task, g.payload, g.timeout, g.unique_key, g.worker, g.progress, g.errors, g.meta, g.result,
        g.group_key, g.batch_id, g.depends_on
    FROM gone g
    RETURNING h.id
), back AS (
    UPDATE pgqueue.jobs j
    SET state = 'available', lease_token = NULL, last_token = o.token, lease_until = NULL, worker = NULL,
        attempt = j.attempt - CASE WHEN o.verdict IN ('retry', 'pass') THEN 0 ELSE 1 END,
        place = coalesce(o.place, j.place),
        run_at = CASE WHEN o.delay > 0 THEN now() + o.delay * interval '1 second' ELSE j.run_at END,
        errors = CASE WHEN o.error IS NULL THEN j.errors
                      WHEN jsonb_array_length(j.errors) >= 50 THEN (j.errors - 0) || o.error::jsonb
                      ELSE coalesce(j.errors, '[]') || o.error::jsonb END
    FROM outcome o JOIN kept k ON k.id = o.id
    WHERE j.id = ANY (%(ids)s::bigint[]) AND j.id = o.id AND j.lease_token = o.token AND j.state = 'running'
      AND NOT k.cancel_requested
    RETURNING j.id, j.queue, o.delay <= 0 AS at_once
), ended AS (
    DELETE FROM pgqueue.leases l USING done d WHERE l.token = ANY (%(done_tokens)s::bigint[]) AND l.token = d.token
), settled AS (  -- batches are counted and followers told in the same commit, after the rows are in history
    SELECT s.id FROM (SELECT array_agg(g.id) AS ids FROM gone g WHERE g.has_followers OR g.batch_id IS NOT NULL) linked
    CROSS JOIN LATERAL (SELECT count(*) FROM landed WHERE linked.ids IS NOT NULL) AS first
    CROSS JOIN LATERAL pgqueue.settle(linked.ids) AS s(id)
    WHERE linked.ids IS NOT NULL
)
SELECT o.id, o.token
FROM outcome o
WHERE NOT EXISTS (SELECT FROM landed l WHERE l.id = o.id) AND NOT EXISTS (SELECT FROM back b WHERE b.id = o.id)
UNION ALL
SELECT s.id, NULL FROM settled s  -- never any
UNION ALL
SELECT NULL, NULL FROM (SELECT b.queue, bool_or(b.at_once) AS at_once FROM back b GROUP BY b.queue) again
WHERE pgqueue.ring(again.queue, again.at_once) IS NULL  -- never any, too

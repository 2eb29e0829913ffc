-- Give each part of a claimed batch a lease of its own: it goes to a client of its own, who may die alone.
--
-- Parameters: token: of the batch's lease, which this ends; ids, tokens, workers: parallel arrays, one element per job of
--   the batch; jobs of one part share a fresh token.
-- Index: leases_pkey, jobs_pkey.
-- Guard: a job is moved while it runs under the batch's token. A lease that has run out meanwhile is left to the sweep.
-- Locks: the lease first, then jobs by id.
-- Answers the ids that were moved.
WITH whole AS MATERIALIZED (
    SELECT l.token, l.lease_until, l.claimed_at, l.queue FROM pgqueue.leases l
    WHERE l.token = %(token)s::bigint AND l.lease_until > now() FOR UPDATE
), mine AS MATERIALIZED (
    SELECT j.id, part.token, part.worker
    FROM pgqueue.jobs j
    JOIN unnest(%(ids)s::bigint[], %(tokens)s::bigint[], %(workers)s::text[]) AS part(id, token, worker) ON part.id = j.id
    JOIN whole w ON w.token = j.lease_token
    WHERE j.id = ANY (%(ids)s::bigint[]) AND j.state = 'running'
    ORDER BY j.id FOR NO KEY UPDATE OF j
), parts AS (
    INSERT INTO pgqueue.leases (token, lease_until, claimed_at, worker, queue, job_ids)
    SELECT m.token, w.lease_until, w.claimed_at, min(m.worker), w.queue, array_agg(m.id ORDER BY m.id)
    FROM mine m CROSS JOIN whole w
    GROUP BY m.token, w.lease_until, w.claimed_at, w.queue
), ended AS (
    DELETE FROM pgqueue.leases l USING whole w
    WHERE l.token = %(token)s::bigint AND l.token = w.token AND 0 = (  -- nothing is left without a lease, whatever was asked for; counted as in held.sql
        SELECT count(*) FROM pgqueue.jobs j
        WHERE j.id = ANY (l.job_ids) AND j.lease_token = l.token AND j.id <> ALL (%(ids)s::bigint[])
    )
)
UPDATE pgqueue.jobs j SET lease_token = m.token, worker = m.worker
FROM mine m WHERE j.id = ANY (%(ids)s::bigint[]) AND j.id = m.id
RETURNING j.id

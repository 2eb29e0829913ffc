-- Prolong the leases of jobs that still run. Only for batches that have been held for a third of the lease.
--
-- Parameters: ids, tokens: parallel arrays, one element per job that still runs; leases: the tokens of all batches to
--   be held on, also those whose outcomes are about to land; lease: interval.
-- Index: leases_pkey, jobs_pkey.
-- Guard: the lease row exists and no sweep holds it; the job is running under this token.
-- Locks: leases first, by token, then jobs.
-- Answers (id, cancel_requested) of the jobs that are held on; one that is not answered is lost.
WITH held AS MATERIALIZED (
    SELECT l.token FROM pgqueue.leases l WHERE l.token = ANY (%(leases)s::bigint[])
    ORDER BY l.token FOR NO KEY UPDATE SKIP LOCKED
), renewed AS (
    UPDATE pgqueue.leases l SET lease_until = now() + %(lease)s::interval FROM held h WHERE l.token = h.token
)
UPDATE pgqueue.jobs j
SET lease_until = now() + %(lease)s::interval
FROM unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) AS o(id, token)
WHERE j.id = ANY (%(ids)s::bigint[]) AND j.id = o.id AND j.lease_token = o.token AND j.state = 'running'
  AND o.token IN (SELECT h.token FROM held h)
RETURNING j.id, j.cancel_requested

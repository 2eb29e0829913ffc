-- Prolong the leases of jobs that still run. Only for batches that have been held for a third of the lease.
--
-- Parameters: ids, tokens: parallel arrays, one element per job that still runs; leases: the tokens of all batches to
--   be held on, also those whose outcomes are about to land; lease: interval.
-- Index: leases_pkey, jobs_pkey.
-- Guard: a lease is prolonged if its row exists and nobody holds it; a job is held while it runs under this token.
-- Locks: leases first, by token, then jobs by id; waits for neither. A job that somebody else has locked (a cancel in a
--   transaction that stays open) is held on all the same: the sweep looks at the lease row.
-- Answers (id, cancel_requested, prolonged) of the jobs that are held; one that is not answered is lost. Not prolonged: a
--   sweep, or our own renewal of a moment ago whose commit is stalled, has the lease's row; ask again soon.
WITH held AS MATERIALIZED (
    SELECT l.token FROM pgqueue.leases l WHERE l.token = ANY (%(leases)s::bigint[])
    ORDER BY l.token FOR NO KEY UPDATE SKIP LOCKED
), renewed AS (
    UPDATE pgqueue.leases l SET lease_until = now() + %(lease)s::interval FROM held h
    WHERE l.token = ANY (%(leases)s::bigint[]) AND l.token = h.token
), mine AS MATERIALIZED (
    SELECT j.id, j.lease_token, j.cancel_requested, h.token IS NOT NULL AS prolonged
    FROM pgqueue.jobs j
    JOIN unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) AS o(id, token) ON j.id = o.id AND j.lease_token = o.token
    JOIN pgqueue.leases l ON l.token = o.token
    LEFT JOIN held h ON h.token = o.token
    WHERE j.id = ANY (%(ids)s::bigint[]) AND j.state = 'running'
      AND l.token = ANY (%(leases)s::bigint[])
), free AS MATERIALIZED (
    SELECT j.id FROM pgqueue.jobs j JOIN mine m ON m.id = j.id AND m.lease_token = j.lease_token AND m.prolonged
    WHERE j.id = ANY (%(ids)s::bigint[])
    ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
), prolonged AS (
    UPDATE pgqueue.jobs j SET lease_until = now() + %(lease)s::interval
    FROM free f WHERE j.id = ANY (%(ids)s::bigint[]) AND j.id = f.id
)
SELECT m.id, m.cancel_requested, m.prolonged FROM mine m

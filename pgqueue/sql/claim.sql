-- Claim up to `limit` due jobs under one new lease: one round trip, one lease row, HOT updates only.
--
-- Parameters: queues, priorities, mark_ats, mark_ids: parallel arrays, one element per lane, in the order the
--   lanes are to be served (a mark is in seconds since 1970, to the microsecond; NULL: from the start); tasks: the names this worker knows, NULL for all; limit; token: fresh, random, 63 bits;
--   lease: interval; worker.
-- Index: jobs_claim, an ordered range per lane that begins behind the lane's mark; jobs_pkey for the update.
-- Guard: state = 'available' under a row lock. A lane begins behind its mark, so that the dead versions that a
--   held snapshot keeps are not walked again; a mark that is too high only delays (the next scan has none).
-- suspect: its last two workers died with it, or its last one and this is its last attempt, or its child process did:
--   it is run apart from others. So a job that was only near one that kills workers is never buried for it.
-- Jobs with a group_key, and queues with limits, are left to claim_managed.sql.
-- MATERIALIZED: the LIMIT is taken once, however the update is planned. Nothing due: no lease row, no write.
WITH lane AS MATERIALIZED (
    SELECT l.queue, l.priority, coalesce(to_timestamp(l.mark_at), '-infinity') AS mark_at, l.mark_id
    FROM unnest(%(queues)s::text[], %(priorities)s::smallint[], %(mark_ats)s::float8[], %(mark_ids)s::bigint[])
        WITH ORDINALITY AS l(queue, priority, mark_at, mark_id, nth)
    WHERE NOT EXISTS (SELECT FROM pgqueue.queues q WHERE q.name = l.queue AND (q.paused OR q.limited))
    ORDER BY l.nth
), pick AS MATERIALIZED (
    SELECT due.id
    FROM lane CROSS JOIN LATERAL (
        SELECT j.id
        FROM pgqueue.jobs j
        WHERE j.state = 'available' AND j.queue = lane.queue AND j.priority = lane.priority AND j.group_key IS NULL
          AND (j.run_at, j.id) > (lane.mark_at, lane.mark_id) AND j.run_at <= now()
          AND (%(tasks)s::text[] IS NULL OR j.task = ANY (%(tasks)s::text[]))
        ORDER BY j.run_at, j.id
        LIMIT %(limit)s::bigint
        FOR NO KEY UPDATE SKIP LOCKED
    ) due
    LIMIT %(limit)s::bigint
), lease AS (
    INSERT INTO pgqueue.leases (token, lease_until, worker, job_ids)
    SELECT %(token)s::bigint, now() + %(lease)s::interval, %(worker)s::text, batch.ids
    FROM (SELECT array_agg(p.id ORDER BY p.id) AS ids FROM pick p) batch
    WHERE batch.ids IS NOT NULL
)
UPDATE pgqueue.jobs j
SET state = 'running', attempt = j.attempt + 1, lease_token = %(token)s::bigint, lease_until = now() + %(lease)s::interval,
    worker = %(worker)s::text, started_at = now(), progress = NULL
WHERE j.id = ANY (ARRAY(SELECT p.id FROM pick p))
RETURNING j.priority, date_part('epoch', j.run_at), j.id, j.queue, j.task, j.payload::text, j.attempt, j.max_attempts,
    extract(epoch FROM j.timeout)::float8, j.meta::text,
    j.errors -> -1 ->> 'type' = 'HandlerCrashedError'
        OR (j.errors -> -1 ->> 'type' = 'LeaseExpired'
            AND (j.errors -> -2 ->> 'type' = 'LeaseExpired' OR j.attempt = j.max_attempts)) AS suspect

-- How many jobs of a queue want a slot now: those that are due and those that run, counted up to `most`. For what scales workers,
-- which asks every few seconds: so nothing is read but these rows of the indexes of the claims, jobs_claim per priority and
-- jobs_group_due (a running job has a run_at in the past and stays where it was), from their late ends: what a held snapshot
-- keeps of jobs that are gone lies at the early ones. On one such connection `most` costs some milliseconds per ten thousand.
--
-- Not counted: scheduled, retrying and blocked jobs; what waits in a paused queue, whose running jobs are found by their leases;
-- more than max_running, since no worker may run them. Counted all the same: jobs that wait for another of their group_key or for
-- a rate, jobs of tasks that nobody has registered. So it is a target for a number of workers with an upper bound, not a promise
-- that all of them have something to do.
--
-- SECURITY DEFINER: a scaler's role needs EXECUTE on this and USAGE on the schema, and can read no payload.
CREATE FUNCTION pgqueue.autoscale(queue text, most integer DEFAULT 10000) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET max_parallel_workers_per_gather = 0 SET jit = off AS $$
    WITH room AS MATERIALIZED (
        SELECT greatest(least(autoscale.most, q.max_running), 0) AS jobs, coalesce(q.paused, false) AS paused
        FROM (VALUES (autoscale.queue)) AS asked(name) LEFT JOIN pgqueue.queues q ON q.name = asked.name
    )
    SELECT count(*) FROM (
        SELECT FROM generate_series(0, 9) AS lane(priority) CROSS JOIN LATERAL (
            SELECT FROM pgqueue.jobs j
            WHERE j.group_key IS NULL AND j.queue = autoscale.queue AND j.priority = lane.priority AND j.run_at <= now()
            ORDER BY j.run_at DESC, j.id DESC
            LIMIT (SELECT r.jobs FROM room r)
        ) plain
        WHERE NOT (SELECT r.paused FROM room r)
        UNION ALL
        (SELECT FROM pgqueue.jobs j
         WHERE j.group_key IS NOT NULL AND j.run_at < 'infinity' AND j.queue = autoscale.queue AND j.run_at <= now()
           AND NOT (SELECT r.paused FROM room r)
         ORDER BY j.run_at DESC, j.id DESC
         LIMIT (SELECT r.jobs FROM room r))
        UNION ALL
        SELECT FROM pgqueue.leases l CROSS JOIN LATERAL unnest(l.job_ids) AS held(id) CROSS JOIN LATERAL (
            SELECT FROM pgqueue.jobs j
            WHERE j.id = held.id AND j.lease_token = l.token AND j.queue = autoscale.queue
            LIMIT 1
        ) running
        WHERE (SELECT r.paused FROM room r)
        LIMIT (SELECT r.jobs FROM room r)
    ) wanted
$$;
REVOKE ALL ON FUNCTION pgqueue.autoscale(text, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pgqueue.autoscale(text, integer) TO pgqueue_reader, pgqueue_worker, pgqueue_admin;

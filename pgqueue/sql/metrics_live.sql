-- What waits and runs in each queue, counted up to a cap: the same few thousand rows are read whether a thousand jobs wait
-- or a hundred million.
--
-- Parameters: queues: at most so many queues, those that have jobs first; most: rows that are counted per queue and kind;
--   budget: the same for all queues together (50 per queue are always counted), and for what runs.
-- Index: jobs_claim, a range per lane and kind, from its late end: what a held snapshot keeps of jobs that are gone lies at
--   the early one; jobs_group_due for jobs with a key; jobs_pkey for what runs, by the ids in the leases.
-- Reads with seqscan and bitmapscan off, under a statement_timeout (see pgqueue.metrics.database).
-- Answers per queue: available, whether there are more; scheduled and retrying, whether more; blocked, whether more;
--   running; seconds since the oldest due job was due.
WITH RECURSIVE plain AS (
    (SELECT j.queue FROM pgqueue.jobs j WHERE j.group_key IS NULL
     ORDER BY j.queue DESC, j.priority DESC, j.run_at DESC, j.id DESC LIMIT 1)
    UNION ALL
    SELECT before.queue FROM plain p CROSS JOIN LATERAL (
        SELECT j.queue FROM pgqueue.jobs j WHERE j.group_key IS NULL AND j.queue < p.queue
        ORDER BY j.queue DESC, j.priority DESC, j.run_at DESC, j.id DESC LIMIT 1
    ) before
), keyed AS (
    (SELECT j.queue FROM pgqueue.jobs j WHERE j.group_key IS NOT NULL
     ORDER BY j.queue DESC, j.run_at DESC, j.id DESC LIMIT 1)
    UNION ALL
    SELECT before.queue FROM keyed k CROSS JOIN LATERAL (
        SELECT j.queue FROM pgqueue.jobs j WHERE j.group_key IS NOT NULL AND j.queue < k.queue
        ORDER BY j.queue DESC, j.run_at DESC, j.id DESC LIMIT 1
    ) before
), named AS MATERIALIZED (
    SELECT n.queue
    FROM (
        (SELECT p.queue, 1 AS has_jobs FROM plain p LIMIT %(queues)s::bigint)
        UNION ALL (SELECT k.queue, 1 FROM keyed k LIMIT %(queues)s::bigint)
        UNION ALL SELECT q.name, 0 FROM pgqueue.queues q
        UNION ALL SELECT unnest(w.queues), 0 FROM pgqueue.workers w WHERE w.heartbeat_at > now() - interval '30 seconds'
    ) n
    GROUP BY n.queue ORDER BY max(n.has_jobs) DESC, n.queue LIMIT %(queues)s::bigint
), allowance AS MATERIALIZED (
    SELECT greatest(50, least(%(most)s::bigint, %(budget)s::bigint / greatest(count(*), 1))) AS jobs FROM named
), running AS MATERIALIZED (
    SELECT ours.queue, (count(*) * (SELECT greatest(1, sum(cardinality(l.job_ids))::float8 / %(budget)s::bigint) FROM pgqueue.leases l))::bigint AS jobs
    FROM (SELECT l.token, i.id FROM pgqueue.leases l CROSS JOIN LATERAL unnest(l.job_ids) AS i(id) LIMIT %(budget)s::bigint) held
    CROSS JOIN LATERAL (
        SELECT j.queue FROM pgqueue.jobs j WHERE j.id = held.id AND j.lease_token = held.token AND j.state = 'running' LIMIT 1
    ) ours
    GROUP BY ours.queue
)
SELECT n.queue,
    due.available, due.seen >= a.jobs,
    later.scheduled, later.retrying, later.scheduled + later.retrying >= a.jobs,
    never.blocked, never.blocked >= a.jobs,
    coalesce(r.jobs, 0),
    coalesce(extract(epoch FROM now() - oldest.run_at), 0)::float8
FROM named n CROSS JOIN allowance a
LEFT JOIN running r ON r.queue = n.queue
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE x.state = 'available') AS available, count(*) AS seen
    FROM (
        SELECT one.state FROM generate_series(0, 9) AS lane(priority) CROSS JOIN LATERAL (
            SELECT j.state FROM pgqueue.jobs j
            WHERE j.group_key IS NULL AND j.queue = n.queue AND j.priority = lane.priority AND j.run_at <= now()
            ORDER BY j.run_at DESC, j.id DESC LIMIT (SELECT w.jobs FROM allowance w)
        ) one
        UNION ALL
        (SELECT j.state FROM pgqueue.jobs j
         WHERE j.group_key IS NOT NULL AND j.queue = n.queue AND j.run_at <= now()
         ORDER BY j.run_at DESC, j.id DESC LIMIT (SELECT w.jobs FROM allowance w))
        LIMIT (SELECT w.jobs FROM allowance w)
    ) x
) due
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE x.attempt = 0) AS scheduled, count(*) FILTER (WHERE x.attempt > 0) AS retrying
    FROM (
        SELECT one.attempt FROM generate_series(0, 9) AS lane(priority) CROSS JOIN LATERAL (
            SELECT j.attempt FROM pgqueue.jobs j
            WHERE j.group_key IS NULL AND j.queue = n.queue AND j.priority = lane.priority AND j.run_at > now() AND j.run_at < 'infinity'
            ORDER BY j.run_at DESC, j.id DESC LIMIT (SELECT w.jobs FROM allowance w)
        ) one
        UNION ALL
        (SELECT j.attempt FROM pgqueue.jobs j
         WHERE j.group_key IS NOT NULL AND j.queue = n.queue AND j.run_at > now() AND j.run_at < 'infinity'
         ORDER BY j.run_at DESC, j.id DESC LIMIT (SELECT w.jobs FROM allowance w))
        LIMIT (SELECT w.jobs FROM allowance w)
    ) x
) later
CROSS JOIN LATERAL (
    SELECT count(*) AS blocked
    FROM (
        SELECT FROM generate_series(0, 9) AS lane(priority) CROSS JOIN LATERAL (
            SELECT FROM pgqueue.jobs j
            WHERE j.group_key IS NULL AND j.queue = n.queue AND j.priority = lane.priority AND j.run_at = 'infinity'
            ORDER BY j.run_at DESC, j.id DESC LIMIT (SELECT w.jobs FROM allowance w)
        ) one
        UNION ALL
        (SELECT FROM pgqueue.jobs j
         WHERE j.group_key IS NOT NULL AND j.queue = n.queue AND j.run_at = 'infinity'
         ORDER BY j.run_at DESC, j.id DESC LIMIT (SELECT w.jobs FROM allowance w))
        LIMIT (SELECT w.jobs FROM allowance w)
    ) x
) never
CROSS JOIN LATERAL (
    SELECT min(x.run_at) AS run_at
    FROM (
        SELECT one.run_at FROM generate_series(0, 9) AS lane(priority) CROSS JOIN LATERAL (
            SELECT j.run_at FROM pgqueue.jobs j
            WHERE j.state = 'available' AND j.group_key IS NULL AND j.queue = n.queue AND j.priority = lane.priority AND j.run_at <= now()
            ORDER BY j.run_at, j.id LIMIT 1
        ) one
        UNION ALL
        (SELECT j.run_at FROM pgqueue.jobs j
         WHERE j.state = 'available' AND j.group_key IS NOT NULL AND j.queue = n.queue AND j.run_at <= now()
         ORDER BY j.run_at, j.id LIMIT 1)
    ) x
) oldest
ORDER BY n.queue

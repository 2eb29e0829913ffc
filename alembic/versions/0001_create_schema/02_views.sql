-- What a person queries: live and finished jobs, with the derived words scheduled and retrying. The types of both halves are the same
-- ones, domains cast away: else the planner reads and sorts all of both for the newest fifty.
CREATE VIEW pgqueue.all_jobs AS
SELECT id, queue, task,
       CASE WHEN state = 'available' AND run_at > now()
            THEN CASE WHEN attempt > 0 THEN 'retrying' ELSE 'scheduled' END
            ELSE state::text END AS state,
       payload, priority::smallint, attempt::smallint, max_attempts::smallint, CASE WHEN state = 'blocked' THEN due_at ELSE run_at END AS run_at, created_at,
       started_at, NULL::timestamptz AS finished_at,
       lease_until, worker, cancel_requested, timeout, unique_key, progress, NULL::jsonb AS result, errors, meta,
       group_key, batch_id, depends_on, coalesce(pending, 0) AS pending
FROM pgqueue.jobs
UNION ALL
SELECT id, queue, task, state::text,
       payload, priority, attempt, max_attempts, run_at, created_at, started_at, finished_at,
       NULL, worker, false, timeout, unique_key, progress, result, errors, meta,
       group_key, batch_id, depends_on, 0
FROM pgqueue.history;

CREATE VIEW pgqueue.queue_stats AS
SELECT coalesce(j.queue, q.name) AS queue,
       coalesce(q.paused, false) AS paused,
       count(*) FILTER (WHERE j.state = 'available' AND j.run_at <= now()) AS available,
       count(*) FILTER (WHERE j.state = 'available' AND j.run_at > now() AND j.attempt = 0) AS scheduled,
       count(*) FILTER (WHERE j.state = 'available' AND j.run_at > now() AND j.attempt > 0) AS retrying,
       count(*) FILTER (WHERE j.state = 'blocked') AS blocked,
       count(*) FILTER (WHERE j.state = 'running') AS running,
       coalesce(extract(epoch FROM now() - min(j.run_at) FILTER (WHERE j.state = 'available' AND j.run_at <= now())), 0)::float8
           AS oldest_ready_seconds
FROM pgqueue.jobs j FULL JOIN pgqueue.queues q ON q.name = j.queue
GROUP BY 1, 2;

-- Add a schedule, or give an existing one everything anew. Its first tick is worked out by the next worker that looks.
--
-- Parameters: the columns; payload: JSON text; replace: whether there may be one of this name.
-- Guard: without replace, a schedule of this name stays as it is, and no row is answered.
-- Answers the row of list_schedules.sql.
INSERT INTO pgqueue.schedules AS s
    (name, expression, time_zone, task, payload, queue, priority, max_attempts, timeout, misfire, grace, overlap, unique_key, group_key)
VALUES (%(name)s::text, %(expression)s::text, %(time_zone)s::text, %(task)s::text, %(payload)s::jsonb, %(queue)s::text,
    %(priority)s::smallint, %(max_attempts)s::smallint, %(timeout)s::interval, %(misfire)s::text, %(grace)s::interval,
    %(overlap)s::text, %(unique_key)s::text, %(group_key)s::text)
ON CONFLICT (name) DO UPDATE SET expression = excluded.expression, time_zone = excluded.time_zone, task = excluded.task,
    payload = excluded.payload, queue = excluded.queue, priority = excluded.priority, max_attempts = excluded.max_attempts,
    timeout = excluded.timeout, misfire = excluded.misfire, grace = excluded.grace, overlap = excluded.overlap,
    unique_key = excluded.unique_key, group_key = excluded.group_key, updated_at = now()
    WHERE %(replace)s::boolean
RETURNING s.name, s.expression, s.time_zone, s.task, s.payload::text, s.queue, s.priority, s.max_attempts, s.timeout, s.misfire,
    s.grace, s.overlap, s.unique_key, s.group_key, s.paused, s.declaration IS NOT NULL, s.next_tick, s.last_tick, s.last_job_id, s.created_at,
    s.updated_at, s.since, now()

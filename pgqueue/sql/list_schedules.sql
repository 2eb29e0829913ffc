-- The schedules by name, or one of them.
--
-- Parameters: name: NULL: all.
-- Index: schedules_pkey.
SELECT s.name, s.expression, s.time_zone, s.task, s.payload::text, s.queue, s.priority, s.max_attempts, s.timeout, s.misfire,
    s.grace, s.overlap, s.unique_key, s.group_key, s.paused, s.declaration IS NOT NULL, s.next_tick, s.last_tick, s.last_job_id, s.created_at,
    s.updated_at, s.since, now()
FROM pgqueue.schedules s
WHERE %(name)s::text IS NULL OR s.name = %(name)s::text
ORDER BY s.name

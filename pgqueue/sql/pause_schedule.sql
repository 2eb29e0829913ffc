-- Pause a schedule: see the function pgqueue.pause_schedule. Answers whether that was a change; NULL: no such schedule.
--
-- Parameters: name.
SELECT pgqueue.pause_schedule(%(name)s::text)

-- Resume a schedule: see the function pgqueue.resume_schedule. Answers whether that was a change; NULL: no such schedule.
--
-- Parameters: name.
SELECT pgqueue.resume_schedule(%(name)s::text)

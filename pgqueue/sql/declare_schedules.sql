-- Write what an application's code declares: see the function pgqueue.declare_schedules. Answers the names written.
--
-- Parameters: schedules: a JSON array.
SELECT pgqueue.declare_schedules(%(schedules)s::jsonb)

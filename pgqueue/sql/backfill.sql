-- Enqueue a job for each of these past ticks that has not fired: see the function pgqueue.backfill. Answers their ids.
--
-- Parameters: name; ticks.
-- Guard: ticks holds what has fired; the schedule is locked.
SELECT pgqueue.backfill(%(name)s::text, %(ticks)s::timestamptz[])

-- Fire what is due: see the function pgqueue.tick. Answers (schedule, tick, job_id) of what was settled here.
--
-- Parameters: plans: a JSON array, of at most some hundred; looked_at: the server's clock when they were made.
-- Index: schedules_pkey, ticks_pkey.
-- Guard: each schedule is still as it was when its plan was made; the row is locked here, SKIP LOCKED; a tick has one row in
--   ticks, and its job is enqueued in the same transaction.
SELECT schedule, tick, job_id FROM pgqueue.tick(%(plans)s::jsonb, %(looked_at)s::timestamptz)

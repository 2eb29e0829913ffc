-- Run a dead, cancelled or waiting job now: see the function pgqueue.retry. Answers the state it is in now, NULL when there is no such job.
--
-- Parameters: job_id.
SELECT pgqueue.retry(%(job_id)s::bigint)

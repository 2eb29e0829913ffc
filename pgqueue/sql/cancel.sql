-- Take a job back: see the function pgqueue.cancel. Answers the state it is in now, NULL when there is no such job.
--
-- Parameters: job_id.
SELECT pgqueue.cancel(%(job_id)s::bigint)

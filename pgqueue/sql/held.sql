-- What is known of running jobs to who will finish them for somebody else: under which lease, and whether that lease ends
-- with them.
--
-- Parameters: ids.
-- Index: jobs_pkey, leases_pkey.
-- Answers (id, queue, token, live, attempt, max_attempts, last, task, ran, waited) of those that run. live: the lease has not run
--   out; last: no other job runs under the lease than these, and none ever will: a token is given out once; ran, waited: the seconds
--   since it was claimed, and from run_at until then.
WITH held AS MATERIALIZED (
    SELECT j.id, j.queue, j.lease_token AS token, j.attempt, j.max_attempts, j.task,
        date_part('epoch', now() - j.started_at) AS ran, date_part('epoch', j.started_at - j.run_at) AS waited
    FROM pgqueue.jobs j WHERE j.id = ANY (%(ids)s::bigint[]) AND j.state = 'running'
), lease AS MATERIALIZED (
    SELECT l.token, l.lease_until > now() AS live, 0 = (  -- counted: an EXISTS may become a join, and scan all jobs
        SELECT count(*) FROM pgqueue.jobs other
        WHERE other.id = ANY (l.job_ids) AND other.id <> ALL (%(ids)s::bigint[]) AND other.lease_token = l.token
    ) AS last
    FROM pgqueue.leases l WHERE l.token = ANY (ARRAY(SELECT h.token FROM held h))
)
SELECT h.id, h.queue, h.token, l.live, h.attempt, h.max_attempts, l.last, h.task, h.ran, h.waited FROM held h JOIN lease l ON l.token = h.token

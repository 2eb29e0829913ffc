-- Stream jobs straight into the table; needs the right to insert there (pgqueue_worker, pgqueue_admin, the owner).
-- The client has validated each job by the same rule as pgqueue.acceptable.
--
-- Parameters: none; the rows come in COPY's binary format.
COPY pgqueue.jobs (id, task, payload, queue, priority, run_at, max_attempts, timeout, unique_key, meta, group_key) FROM STDIN (FORMAT binary)

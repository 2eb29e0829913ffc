-- Write the latest progress of running jobs.
--
-- Parameters: ids, tokens, progress: parallel arrays; progress: JSON text.
-- Index: jobs_pkey. Guard: the job is running under this token.
-- Locks: waits for none; what is locked gets its next progress.
WITH report AS MATERIALIZED (
    SELECT j.id, o.progress
    FROM pgqueue.jobs j
    JOIN unnest(%(ids)s::bigint[], %(tokens)s::bigint[], %(progress)s::text[]) AS o(id, token, progress)
        ON j.id = o.id AND j.lease_token = o.token
    WHERE j.id = ANY (%(ids)s::bigint[]) AND j.state = 'running'
    ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
)
UPDATE pgqueue.jobs j SET progress = r.progress::jsonb
FROM report r WHERE j.id = ANY (%(ids)s::bigint[]) AND j.id = r.id

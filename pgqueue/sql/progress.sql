-- Write the latest progress of running jobs.
--
-- Parameters: ids, tokens, progress: parallel arrays; progress: JSON text.
-- Index: jobs_pkey. Guard: the job is running under this token.
UPDATE pgqueue.jobs j
SET progress = o.progress::jsonb
FROM unnest(%(ids)s::bigint[], %(tokens)s::bigint[], %(progress)s::text[]) AS o(id, token, progress)
WHERE j.id = ANY (%(ids)s::bigint[]) AND j.id = o.id AND j.lease_token = o.token AND j.state = 'running'

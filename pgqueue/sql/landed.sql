-- Which of these ends had landed although the reply was lost, and how: history keeps the token that finished a job, and a job
-- that came back the one under which its last run ended, until the next one has.
--
-- Parameters: ids, tokens: parallel arrays.
-- Index: jobs_pkey and the primary key of each partition of history.
-- Answers (id, how): completed, dead, cancelled, or back.
WITH o AS MATERIALIZED (
    SELECT o.id, o.token FROM unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) AS o(id, token)
)
SELECT h.id, h.state::text
FROM pgqueue.history h JOIN o ON h.id = o.id AND h.lease_token = o.token
WHERE h.id = ANY (%(ids)s::bigint[])
UNION ALL
SELECT j.id, 'back'
FROM pgqueue.jobs j JOIN o ON j.id = o.id AND j.last_token = o.token
WHERE j.id = ANY (%(ids)s::bigint[])

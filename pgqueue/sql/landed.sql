-- Which of these outcomes had landed although the reply was lost: history keeps the token that finished a job.
--
-- Parameters: ids, tokens: parallel arrays.
-- Index: the primary key of each partition of history.
SELECT h.id
FROM pgqueue.history h
JOIN unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) AS o(id, token) ON h.id = o.id AND h.lease_token = o.token
WHERE h.id = ANY (%(ids)s::bigint[])

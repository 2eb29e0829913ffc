-- Claim from one queue with keys or limits: see the function pgqueue.claim_managed. Answers the columns of claim.sql and the
-- group_key; the payload is NULL where all of them together are large (payloads.sql).
--
-- Parameters: queue; tasks: the names this worker knows, NULL for all; limit; token, lease, worker: as in claim.sql;
--   mark_ats, mark_ids: one element per priority, where its lane begins; hints: keys of which jobs have just ended here.
-- Raises lock_not_available when the queue's lock is not to be had in a quarter of a second.
SELECT c.priority, date_part('epoch', c.run_at), c.id, c.queue_name, c.task, c.payload, c.attempt, c.max_attempts, c.timeout, c.meta,
    c.suspect, c.group_key
FROM pgqueue.claim_managed(%(queue)s::text, %(tasks)s::text[], %(limit)s::integer, %(token)s::bigint, %(lease)s::interval,
    %(worker)s::text, ARRAY(SELECT to_timestamp(m.at) FROM unnest(%(mark_ats)s::float8[]) WITH ORDINALITY AS m(at, nth) ORDER BY m.nth),
    %(mark_ids)s::bigint[], %(hints)s::text[]) c

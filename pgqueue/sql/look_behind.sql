-- What claims do not see that begin behind their marks: of each lane the first job before its mark that could be claimed.
-- Answers queue, priority, and where it is. Writes and locks nothing: it may take long, and is made beside the claims.
--
-- Parameters: queues, priorities, mark_ats, mark_ids, tasks: as in claim.sql; since: in seconds since 1970; NULL: from the start.
-- Index: jobs_claim, an ordered range per lane that ends at the lane's mark.
WITH lane AS MATERIALIZED (
    SELECT l.queue, l.priority, to_timestamp(l.mark_at) AS mark_at, l.mark_id
    FROM unnest(%(queues)s::text[], %(priorities)s::smallint[], %(mark_ats)s::float8[], %(mark_ids)s::bigint[])
        AS l(queue, priority, mark_at, mark_id)
    WHERE l.mark_at IS NOT NULL
      AND NOT EXISTS (SELECT FROM pgqueue.queues q WHERE q.name = l.queue AND (q.paused OR q.limited))
)
SELECT lane.queue, lane.priority, date_part('epoch', behind.run_at), behind.id
FROM lane CROSS JOIN LATERAL (
    SELECT j.run_at, j.id
    FROM pgqueue.jobs j
    WHERE j.state = 'available' AND j.queue = lane.queue AND j.priority = lane.priority AND j.group_key IS NULL
      AND j.run_at >= coalesce(to_timestamp(%(since)s::float8), '-infinity') AND (j.run_at, j.id) <= (lane.mark_at, lane.mark_id)
      AND (%(tasks)s::text[] IS NULL OR j.task = ANY (%(tasks)s::text[]))
    ORDER BY j.run_at, j.id
    LIMIT 1
) behind

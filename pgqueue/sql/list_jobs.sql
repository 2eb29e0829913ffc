-- Jobs, newest id first, a page at a time; one statement looks at a bounded number of them.
--
-- Parameters: queue, task, state, tag, since, age: NULL for any (tag: one of the texts in the list meta -> 'tags'; since: created then
--   or later; age: the same, as an interval before now); before: an id to go on from, NULL for the newest; most: look at so many,
--   NULL for all; limit: answer so many.
-- Index: jobs_pkey and the primary key of each partition of history, backwards from `before`, no further than `most` rows.
-- Answers the jobs and after them (found, more). The last one looked at comes along when it was the `most`-th: found says whether it
--   is one that was asked for; more: whether others may follow, which is not so when none of those that were looked at is young enough.
--   Ids are given out in the order of time, so then the rest is older, too.
SELECT id, queue, task, state, payload::text, priority, attempt, max_attempts, run_at, created_at, started_at, finished_at,
    lease_until, worker, cancel_requested, timeout, unique_key, progress::text, result::text, errors::text, meta::text,
    group_key, batch_id, depends_on, pending, found, nth = %(most)s::bigint AND young > 0 AS more
FROM (
    SELECT j.*, row_number() OVER above AS nth, count(*) FILTER (WHERE j.created_at >= from_when.at) OVER above AS young,
        (%(queue)s::text IS NULL OR j.queue = %(queue)s) AND (%(task)s::text IS NULL OR j.task = %(task)s)
        AND (%(state)s::text IS NULL OR j.state = %(state)s) AND j.created_at >= from_when.at
        AND (%(tag)s::text IS NULL OR coalesce(j.meta -> 'tags' @> jsonb_build_array(%(tag)s::text), false)) AS found
    FROM (
        SELECT a.* FROM pgqueue.all_jobs a
        WHERE a.id < coalesce(%(before)s::bigint, 9223372036854775807)
        ORDER BY a.id DESC
        LIMIT %(most)s::bigint
    ) j
    CROSS JOIN (SELECT coalesce(now() - %(age)s::interval, %(since)s::timestamptz, '-infinity') AS at) from_when
    WINDOW above AS (ORDER BY j.id DESC ROWS UNBOUNDED PRECEDING)
) looked_at
WHERE found OR nth = %(most)s::bigint
ORDER BY id DESC
LIMIT %(limit)s

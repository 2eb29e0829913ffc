-- Seconds until the next waiting job of these lanes is due; NULL when none waits. An idle worker sleeps no longer.
--
-- Parameters: queues, priorities: parallel arrays, one element per lane; tasks: names, NULL for all.
-- Index: jobs_claim, one probe per lane.
SELECT extract(epoch FROM min(due.run_at) - clock_timestamp())::float8
FROM unnest(%(queues)s::text[], %(priorities)s::smallint[]) AS lane(queue, priority)
CROSS JOIN LATERAL (
    SELECT j.run_at
    FROM pgqueue.jobs j
    WHERE j.state = 'available' AND j.queue = lane.queue AND j.priority = lane.priority AND j.priority >= 0
      AND j.run_at > now()
      AND (%(tasks)s::text[] IS NULL OR j.task = ANY (%(tasks)s::text[]))
    ORDER BY j.run_at
    LIMIT 1
) due
WHERE NOT EXISTS (SELECT FROM pgqueue.queues q WHERE q.name = lane.queue AND q.paused)

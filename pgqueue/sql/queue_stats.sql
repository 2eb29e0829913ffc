-- What waits and runs, per queue; and what ended, from history.
--
-- Parameters: none. Counts the live table: for people, not for a loop.
SELECT coalesce(s.queue, h.queue), coalesce(s.paused, false), coalesce(s.available, 0), coalesce(s.scheduled, 0),
    coalesce(s.retrying, 0), coalesce(s.blocked, 0), coalesce(s.running, 0), coalesce(h.completed, 0), coalesce(h.dead, 0), coalesce(h.cancelled, 0),
    coalesce(s.oldest_ready_seconds, 0)
FROM pgqueue.queue_stats s
FULL JOIN (
    SELECT queue, count(*) FILTER (WHERE state = 'completed') AS completed, count(*) FILTER (WHERE state = 'dead') AS dead,
        count(*) FILTER (WHERE state = 'cancelled') AS cancelled
    FROM pgqueue.history GROUP BY queue
) h ON h.queue = s.queue
ORDER BY 1

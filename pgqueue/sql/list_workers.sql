-- The workers that have been heard of within a day; alive: within the last 30 seconds.
--
-- Parameters: none.
SELECT name, host, pid, queues, slots, running, version, stopping, started_at, heartbeat_at,
    heartbeat_at > now() - interval '30 seconds' AS alive
FROM pgqueue.workers
ORDER BY started_at, name

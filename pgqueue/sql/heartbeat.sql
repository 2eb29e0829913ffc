-- Say that this worker is alive, and forget those that have been silent for a day.
--
-- Parameters: name, host, pid, queues, slots, running, version, stopping.
-- Answers the server's clock, in seconds since 1970.
WITH silent AS (
    DELETE FROM pgqueue.workers w WHERE w.heartbeat_at < now() - interval '1 day' AND w.name <> %(name)s
)
INSERT INTO pgqueue.workers AS w (name, host, pid, queues, slots, running, version, stopping)
VALUES (%(name)s, %(host)s, %(pid)s, %(queues)s, %(slots)s, %(running)s, %(version)s, %(stopping)s)
ON CONFLICT (name) DO UPDATE
SET running = excluded.running, stopping = excluded.stopping, slots = excluded.slots, heartbeat_at = now()
RETURNING extract(epoch FROM clock_timestamp())::float8

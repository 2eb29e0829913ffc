-- The settings of the queues that have any.
--
-- Parameters: none.
SELECT q.name, q.paused, q.max_running, q.per_key, q.rate, q.burst, q.key_rate, q.key_burst, q.ageing
FROM pgqueue.queues q ORDER BY q.name

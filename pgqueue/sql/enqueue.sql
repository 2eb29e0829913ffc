-- Enqueue one job through the public contract. Answers its id.
--
-- Parameters: the arguments of pgqueue.enqueue; payload, meta: JSON text.
SELECT pgqueue.enqueue(task => %(task)s::text, payload => %(payload)s::jsonb, queue => %(queue)s::text,
    priority => %(priority)s::integer, delay => %(delay)s::interval, run_at => %(run_at)s::timestamptz,
    max_attempts => %(max_attempts)s::integer, timeout => %(timeout)s::interval, unique_key => %(unique_key)s::text,
    meta => %(meta)s::jsonb)

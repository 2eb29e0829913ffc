-- Enqueue a few jobs without keys and dependencies, all or none: the function once for each. Answers the ids in their order.
-- Up to a dozen or two it costs less than pgqueue.submit_many, which has a fixed price.
--
-- Parameters: jobs: a JSON array of objects with the arguments of pgqueue.enqueue.
SELECT pgqueue.enqueue(task => r.task, payload => e.item -> 'payload', queue => r.queue, priority => r.priority, delay => r.delay,
    run_at => r.run_at, max_attempts => r.max_attempts, timeout => r.timeout, meta => r.meta)
FROM jsonb_array_elements(%(jobs)s::jsonb) AS e(item)
CROSS JOIN LATERAL jsonb_to_record(e.item) AS r(task text, queue text, priority integer, delay interval, run_at timestamptz,
    max_attempts integer, timeout interval, meta jsonb)

-- Change a queue's limits: see the function pgqueue.limit_queue. Answers them all as JSON.
--
-- Parameters: queue; limits: a JSON object.
SELECT pgqueue.limit_queue(%(queue)s::text, %(limits)s::jsonb)::text

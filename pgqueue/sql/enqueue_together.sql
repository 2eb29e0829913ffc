-- Enqueue plain jobs of several callers, all or none. Answers the ids in their order.
--
-- Parameters: jobs: a JSON array of objects with the arguments of pgqueue.enqueue, but for keys and dependencies.
SELECT pgqueue.enqueue_together(%(jobs)s::jsonb)

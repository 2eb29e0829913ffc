-- Take jobs from a queue again: see the function pgqueue.resume.
--
-- Parameters: queue.
SELECT pgqueue.resume(%(queue)s::text)

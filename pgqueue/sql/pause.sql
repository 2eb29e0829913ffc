-- Take nothing more from a queue: see the function pgqueue.pause.
--
-- Parameters: queue.
SELECT pgqueue.pause(%(queue)s::text)

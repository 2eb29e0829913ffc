-- Delete a schedule: see the function pgqueue.remove_schedule. Answers whether there was one.
--
-- Parameters: name.
SELECT pgqueue.remove_schedule(%(name)s::text)

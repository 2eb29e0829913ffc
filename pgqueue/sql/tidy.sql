-- Forget throttles and token buckets that have run out: see the function pgqueue.tidy.
--
-- Parameters: none.
SELECT pgqueue.tidy()

-- Forget what has run out: throttles, full token buckets, batches without history, tokens that nobody may use any more, edges to jobs that
-- are gone. See the function pgqueue.tidy.
--
-- Parameters: none.
SELECT pgqueue.tidy()

-- A new batch, to be filled in the same transaction: see the function pgqueue.create_batch. Answers its id.
--
-- Parameters: name: NULL for none.
SELECT pgqueue.create_batch(%(name)s::text)

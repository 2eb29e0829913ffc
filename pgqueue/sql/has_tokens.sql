-- Whether there ever was a token: see the function pgqueue.has_tokens.
--
-- Parameters: none.
SELECT pgqueue.has_tokens()

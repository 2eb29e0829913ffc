-- Take the hash of a token of the HTTP API away: from the commit on nothing finds it. Answers true, or no row: there is none of
-- this name.
--
-- Parameters: name.
-- Index: tokens_name.
-- Guard: it was not revoked before.
UPDATE pgqueue.tokens t SET hash = NULL, revoked_at = now()
WHERE t.name = %(name)s::text AND t.revoked_at IS NULL
RETURNING true

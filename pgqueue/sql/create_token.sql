-- Add a token of the HTTP API. Its secret never comes here.
--
-- Parameters: name; hash: SHA-256 of the secret; scopes, queues: arrays; expires_in: NULL: it does not expire.
-- Index: tokens_name.
-- Guard: a token of this name that was not revoked stays as it is, and no row is answered.
-- Answers the row of list_tokens.sql.
INSERT INTO pgqueue.tokens (name, hash, scopes, queues, expires_at)
VALUES (%(name)s::text, %(hash)s::bytea, %(scopes)s::text[], %(queues)s::text[], now() + %(expires_in)s::interval)
ON CONFLICT (name) WHERE revoked_at IS NULL DO NOTHING
RETURNING id, name, scopes, queues, created_at, expires_at, last_used_at, revoked_at, false

-- The token that a request came with: see the function pgqueue.find_token. No row: it is unknown, expired or revoked.
--
-- Parameters: hash: SHA-256 of the secret.
-- Index: tokens_hash. Its timing tells of hashes at most, and from a hash nobody gets to a secret.
-- Answers the row of list_tokens.sql.
SELECT t.id, t.name, t.scopes, t.queues, t.created_at, t.expires_at, t.last_used_at, t.revoked_at, false
FROM pgqueue.find_token(%(hash)s::bytea) t

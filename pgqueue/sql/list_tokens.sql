-- The tokens of the HTTP API by name, without their hashes; at last whether it has expired.
--
-- Parameters: revoked: also those that were revoked.
SELECT t.id, t.name, t.scopes, t.queues, t.created_at, t.expires_at, t.last_used_at, t.revoked_at,
    coalesce(t.expires_at <= now(), false)
FROM pgqueue.tokens t WHERE t.revoked_at IS NULL OR %(revoked)s::boolean
ORDER BY t.name, t.id

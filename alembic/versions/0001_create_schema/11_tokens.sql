-- Tokens of the HTTP API. A secret of 256 random bits is held by who was given it; here is its SHA-256 and what it may do
-- (pgqueue/tokens.py). Revoking takes the hash away: what is not there can't be let in by a condition that somebody forgot. The row
-- stays for 30 days (pgqueue.tidy): it tells until when the token was used, and that the API is one with tokens.
--
-- After the roles, so that SELECT ON ALL TABLES is not about it: nobody but the owner and the admin reads or changes it.
CREATE TABLE pgqueue.tokens (
    id bigint GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    hash bytea,
    scopes text[] NOT NULL,  -- admin implies the others
    queues text[] NOT NULL DEFAULT '{*}',  -- globs; * and ? are special
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    last_used_at timestamptz,  -- give or take a minute
    revoked_at timestamptz,
    CONSTRAINT tokens_pkey PRIMARY KEY (id),
    CONSTRAINT tokens_hash UNIQUE (hash),
    CONSTRAINT tokens_name_has_1_to_128_characters CHECK (char_length(name) BETWEEN 1 AND 128),
    CONSTRAINT tokens_hash_is_of_sha_256 CHECK (octet_length(hash) = 32),
    CONSTRAINT tokens_have_a_hash_until_they_are_revoked CHECK ((hash IS NULL) = (revoked_at IS NOT NULL)),
    CONSTRAINT tokens_scopes_are_known CHECK (cardinality(scopes) BETWEEN 1 AND 4 AND array_ndims(scopes) = 1
        AND scopes <@ ARRAY['enqueue', 'work', 'read', 'admin']),
    CONSTRAINT tokens_queues_are_1_to_100_globs CHECK (cardinality(queues) BETWEEN 1 AND 100 AND array_ndims(queues) = 1
        AND array_position(queues, NULL) IS NULL AND array_position(queues, '') IS NULL),
    CONSTRAINT tokens_times_are_from_1970_to_9998 CHECK (created_at BETWEEN '1970-01-01Z' AND '9999-01-01Z'
        AND expires_at BETWEEN '1970-01-01Z' AND '9999-01-01Z' AND last_used_at BETWEEN '1970-01-01Z' AND '9999-01-01Z'
        AND revoked_at BETWEEN '1970-01-01Z' AND '9999-01-01Z')
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX tokens_name ON pgqueue.tokens (name) WHERE revoked_at IS NULL;

-- The token with this hash, unless it has expired. Notes that it was used, if that was last noted a minute ago or more; who finds
-- the row locked (another request notes it just now, or somebody revokes it) leaves that to others: a request never waits,
-- and as a rule it writes nothing.
CREATE FUNCTION pgqueue.find_token(hash bytea) RETURNS SETOF pgqueue.tokens
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    token pgqueue.tokens;
BEGIN
    SELECT t.* INTO token FROM pgqueue.tokens t
    WHERE t.hash = find_token.hash AND (t.expires_at IS NULL OR t.expires_at > now());
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF token.last_used_at IS NULL OR token.last_used_at <= now() - interval '1 minute' THEN
        UPDATE pgqueue.tokens t SET last_used_at = now()
        WHERE t.id = (
            SELECT s.id FROM pgqueue.tokens s
            WHERE s.id = token.id AND (s.last_used_at IS NULL OR s.last_used_at <= now() - interval '1 minute')
            FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
    RETURN NEXT token;
END $$;

-- Whether there ever was a token. Revoked and expired ones count: who takes away the last one does not open the door to everybody.
CREATE FUNCTION pgqueue.has_tokens() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM pgqueue.tokens)
$$;

REVOKE ALL ON pgqueue.tokens FROM PUBLIC;
REVOKE ALL ON FUNCTION pgqueue.find_token(bytea), pgqueue.has_tokens() FROM PUBLIC;
-- Who checks a token has to know its hash, and learns of no other: so the worker's role is enough for a server without the scope admin.
GRANT EXECUTE ON FUNCTION pgqueue.find_token(bytea), pgqueue.has_tokens() TO pgqueue_worker, pgqueue_admin;
GRANT SELECT, INSERT, UPDATE, DELETE ON pgqueue.tokens TO pgqueue_admin;

-- The bell. An idle worker holds the shared lock of its queue: only then is there somebody to wake, and only
-- then does an enqueue pay for a NOTIFY (which takes a cluster-wide lock at commit). A full notification queue
-- would fail the caller's COMMIT, so from half full on the bell is silent and workers poll.
CREATE FUNCTION pgqueue.bell_key(queue text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT hashtextextended('pgqueue.bell ' || queue, 0) $$;

-- ``back``: a job is back at its old place, which may lie before the places where workers look: those that are awake are
-- told, too.
CREATE FUNCTION pgqueue.ring(queue text, back boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF back AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('pgqueue.back', queue);
    END IF;
    IF pg_try_advisory_lock(hashtextextended('pgqueue.bell ' || queue, 0)) THEN
        PERFORM pg_advisory_unlock(hashtextextended('pgqueue.bell ' || queue, 0));
    ELSIF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('pgqueue.wake', queue);
    END IF;
END $$;

-- How long an outcome is kept in history.
--
-- Parameters: state, keep: interval.
UPDATE pgqueue.retention r SET keep = %(keep)s::interval WHERE r.state = %(state)s::pgqueue.job_state RETURNING r.state::text

-- How long each outcome is kept.
--
-- Parameters: none.
SELECT r.state::text, r.keep FROM pgqueue.retention r ORDER BY r.state

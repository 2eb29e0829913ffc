-- The schedules whose next tick is near, or not worked out yet, and this server's clock.
--
-- Parameters: horizon: how near.
-- Index: schedules_next.
SELECT name, expression, time_zone, misfire, grace, since, next_tick, last_tick, now()
FROM pgqueue.schedules
WHERE NOT paused AND coalesce(next_tick, '-infinity') <= now() + %(horizon)s::interval
ORDER BY coalesce(next_tick, '-infinity')

-- Forget which ticks fired more than 30 days ago: see the function pgqueue.forget_ticks.
SELECT pgqueue.forget_ticks()

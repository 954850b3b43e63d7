-- wake: wake one worker.
-- Guarantee: the worker's wait returns now, or at once when it next waits within 120 s.
-- KEYS: meta (hash), canary (none)
-- ARGV: worker
-- Returns: 1
-- Transitions: none
-- Flags: allow-oom
-- Uses: wake
wake(ARGV[1])
return 1

-- pause: stop or resume handing out a queue's jobs.
-- Guarantee: once it is paused no claim hands out a job of it and nobody is woken for it; what runs goes on; harmless to repeat.
-- KEYS: meta (hash), canary (none)
-- ARGV: queue, paused 0|1
-- Returns: 1
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place
local queue = ARGV[1]
redis.call('SADD', K.queues, queue)
redis.call(ARGV[2] == '1' and 'SADD' or 'SREM', K.paused, queue)
-- The marker follows: set again on resume where jobs wait, gone on pause.
for index = 1, #PRIORITIES do
  touch({queue = queue, priority = PRIORITIES[index]})
end
flush()
return 1

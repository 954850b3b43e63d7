-- prune: remove final jobs past their retention, and those above the caps.
-- Guarantee: only final jobs go, each with all its keys.
-- KEYS: meta (hash), canary (none)
-- ARGV: limit, dead_cap, finished_cap
-- Returns: [removed by age, removed by cap]
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place
local limit, dead_cap, finished_cap = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function remove(id, index_key)
  local job = load(id, {'status', 'queue'})
  if PLACES[job.status] ~= 'final' then
    redis.call('ZREM', index_key, id)
    return 0
  end
  leave(id, job)
  remove_job(id)
  add(counts, 'pruned', job.queue, 1)
  return 1
end

local aged, capped = 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.expire, '-inf', now, 'LIMIT', 0, limit)) do
  aged = aged + remove(id, K.expire)
end

-- One ZCARD a queue, once a second: the number of queues bounds it.
local dead_removed = 0
for _, queue in ipairs(redis.call('SMEMBERS', K.queues)) do
  local excess = math.min(redis.call('ZCARD', K.dead(queue)) - dead_cap, limit - dead_removed)
  if excess > 0 then
    for _, id in ipairs(redis.call('ZRANGE', K.dead(queue), 0, excess - 1)) do
      dead_removed = dead_removed + remove(id, K.dead(queue))
    end
  end
end

local finished = tonumber(redis.call('HGET', K.gauges, 'finished:') or 0) + (gauges['finished:'] or 0)
local excess = math.min(finished - finished_cap, limit)
if excess > 0 then
  for _, id in ipairs(redis.call('ZRANGE', K.expire, 0, limit - 1)) do
    if excess > 0 and redis.call('HGET', K.job(id), 'status') ~= 'failed' then
      capped = capped + remove(id, K.expire)
      excess = excess - 1
    end
  end
end
flush()
return {aged, capped + dead_removed}

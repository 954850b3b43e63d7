-- promote: queue delayed jobs that are due; expire jobs that were not started in time.
-- Guarantee: never early by the server's clock; harmless to repeat, on any number of processes.
-- KEYS: meta (hash), canary (none)
-- ARGV: limit, retention_ms, failed_retention_ms
-- Returns: [queued, expired, next due or '', now]
-- Transitions: scheduled -due-> queued, retrying -due-> queued, queued -expire-> expired, scheduled -expire-> expired, retrying -expire-> expired
-- Flags: allow-oom
-- Uses: time, job, place_names, place
local limit = tonumber(ARGV[1])
local retention = {ms = tonumber(ARGV[2]), failed_ms = tonumber(ARGV[3])}
local queued, expired = 0, 0

local function queue_due(id)
  local job = load(id, CORE)
  if PLACES[job.status] == 'delayed' then
    local seq = next_seq(limit)
    move(id, job, 'queued', seq, {'seq', seq})
    redis.call('HDEL', K.job(id), 'due')
    queued = queued + 1
  else
    redis.call('ZREM', K.delayed, id)
  end
end

local function expire_late(id)
  local job = load(id, CORE)
  local place = PLACES[job.status]
  if (place == 'queue' or place == 'delayed') and tonumber(job.attempt or 0) == 0 then
    finish(id, job, 'expired', {}, retention)
    expired = expired + 1
  else
    redis.call('ZREM', K.expiry, id)
  end
end

sweep(K.delayed, limit, queue_due)
sweep(K.expiry, limit, expire_late)
flush()
return {queued, expired, next_due(), now}

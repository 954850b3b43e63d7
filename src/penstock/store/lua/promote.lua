-- promote: queue delayed jobs that are due; expire jobs that were not started in time.
-- Guarantee: never early by the server's clock; harmless to repeat, on any number of processes.
-- KEYS: meta (hash), canary (none)
-- ARGV: limit, retention_ms, failed_retention_ms
-- Returns: [queued, expired, next due or '', now]
-- Transitions: scheduled -due-> queued, retrying -due-> queued, queued -expire-> expired, scheduled -expire-> expired, retrying -expire-> expired
-- Flags: allow-oom
-- Uses: time, job, place_names, place, together
local limit = tonumber(ARGV[1])
local retention = {ms = tonumber(ARGV[2]), failed_ms = tonumber(ARGV[3])}
local queued, expired = 0, 0
-- Jobs that are due and not yet moved.
local due = {}

local function queue_due(id, text)
  local job = load(id, text)
  if PLACES[job.status] == 'delayed' then
    local seq = next_seq(limit)
    job.seq, job.due = seq, nil
    due[#due + 1] = {id = id, job = job, at = seq}
  else
    redis.call('ZREM', K.delayed, id)
  end
end

local function expire_late(id, text)
  local job = load(id, text)
  local place = PLACES[job.status]
  if (place == 'queue' or place == 'delayed') and tonumber(job.attempt or 0) == 0 then
    finish(id, job, 'expired', {}, retention)
    expired = expired + 1
  else
    redis.call('ZREM', K.expiry, id)
  end
end

sweep(K.delayed, limit, queue_due)
move_together(due, 'queued')
for _, one in ipairs(due) do
  if one.failed then
    put_off(K.delayed, one.id)
  else
    queued = queued + 1
  end
end
sweep(K.expiry, limit, expire_late)
flush()
return {queued, expired, next_due(), now}

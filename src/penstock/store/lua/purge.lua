-- purge: cancel what is queued in a queue, up to a place.
-- Guarantee: what is queued after the first step of a purge is left alone, and so is what runs, is scheduled or waits for a retry.
-- KEYS: meta (hash), canary (none)
-- ARGV: queue, up_to (the last place taken, or '' for the newest), limit, retention_ms, failed_retention_ms
-- Returns: [cancelled, up_to, more 0|1]
-- Transitions: queued -cancel-> cancelled
-- Flags: allow-oom
-- Uses: time, job, place_names, place
local queue, limit = ARGV[1], tonumber(ARGV[3])
local up_to = ARGV[2] ~= '' and ARGV[2] or redis.call('HGET', K.counters, 'seq') or '0'
local retention = {ms = tonumber(ARGV[4]), failed_ms = tonumber(ARGV[5])}
local cancelled, moved, looked = 0, 0, 0

local function cancel_one(queue_key, id)
  local job = load(id)
  if job.status ~= 'queued' then
    redis.call('ZREM', queue_key, id)
    return
  end
  finish(id, job, 'cancelled', {cancel = now}, retention)
  cancelled = cancelled + 1
end

for index = 1, #PRIORITIES do
  local queue_key = K.queue(queue, PRIORITIES[index])
  touch({queue = queue, priority = PRIORITIES[index]})
  for _, id in ipairs(redis.pcall('ZRANGEBYSCORE', queue_key, '-inf', up_to, 'LIMIT', 0, limit - looked)) do
    looked = looked + 1
    -- A damaged job must not stop the rest; the auditor names it.
    if pcall(cancel_one, queue_key, id) then
      moved = moved + 1
    end
  end
end
flush()
return {cancelled, up_to, (looked == limit and moved > 0) and 1 or 0}

-- prune: remove final jobs past their retention, and those above the caps.
-- Guarantee: only final jobs go, each with all its keys; above a cap, those that finished first.
-- KEYS: meta (hash), canary (none)
-- ARGV: limit, dead_cap, finished_cap
-- Returns: [removed by age, removed by cap]
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place
local QUEUES_A_CALL, ENTRIES_A_CALL = 1000, 4000
local limit, dead_cap, finished_cap = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local finished_before = tonumber(redis.call('HGET', K.gauges, 'finished:') or 0) or 0

local function remove_one(id, index_key, counted_as, text)
  local job = load(id, text)
  if PLACES[job.status] ~= 'final' then
    redis.call('ZREM', index_key, id)
    return 0
  end
  leave(id, job, job.status)
  remove_job(id)
  add(counts, counted_as, job.queue, 1)
  return 1
end

-- A damaged job must not stop the sweep; the auditor names it.
local function remove(id, index_key, counted_as)
  local ok, removed = pcall(remove_one, id, index_key, counted_as)
  return ok and removed or 0
end

local aged, capped = 0, 0
sweep(K.expire, limit, function(id, text)
  aged = aged + remove_one(id, K.expire, 'pruned', text)
end)

-- One ZCARD a queue; of very many queues a random share each time, so that a call stays short.
local queues = redis.call('SRANDMEMBER', K.queues, QUEUES_A_CALL)
local dead_removed = 0
for _, queue in ipairs(queues) do
  local excess = math.min(redis.call('ZCARD', K.dead(queue)) - dead_cap, limit - dead_removed)
  if excess > 0 then
    for _, id in ipairs(redis.call('ZRANGE', K.dead(queue), 0, excess - 1)) do
      dead_removed = dead_removed + remove(id, K.dead(queue), 'dead_dropped')
    end
  end
end

-- Return the `wanted` jobs that finished first, of the given queues; of very many queues only the first few of each.
local function oldest_finished(queues, wanted)
  local each = math.min(wanted, math.max(1, math.floor(ENTRIES_A_CALL / (3 * #queues))))
  local found = {}
  for _, queue in ipairs(queues) do
    for _, status in ipairs({'completed', 'cancelled', 'expired'}) do
      local index_key = K.final(status, queue)
      local flat = redis.call('ZRANGE', index_key, 0, each - 1, 'WITHSCORES')
      for position = 1, #flat, 2 do
        found[#found + 1] = {id = flat[position], at = tonumber(flat[position + 1]), index_key = index_key}
      end
    end
  end
  table.sort(found, function(a, b)
    if a.at ~= b.at then
      return a.at < b.at
    end
    return a.id < b.id
  end)
  return found
end

local excess = math.min(finished_before + (gauges['finished:'] or 0) - finished_cap, limit)
if excess > 0 then
  local found = oldest_finished(queues, excess)
  for position = 1, math.min(excess, #found) do
    capped = capped + remove(found[position].id, found[position].index_key, 'dropped')
  end
end
flush()
return {aged, capped + dead_removed}

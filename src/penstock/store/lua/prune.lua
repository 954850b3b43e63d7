-- prune: remove final jobs past their retention, and those above the caps.
-- Guarantee: only final jobs go, each with all its keys, at most `limit` of each kind; above a cap, those that finished first.
-- KEYS: meta (hash), canary (none)
-- ARGV: limit, dead_cap, finished_cap
-- Returns: [removed by age, removed by cap]
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place
local QUEUES_A_CALL, ENTRIES_A_CALL, READ_AT_ONCE = 1000, 4000, 20
local limit, dead_cap, finished_cap = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local finished_before = tonumber(redis.call('HGET', K.gauges, 'finished:') or 0) or 0

local function remove_final(id, job, counted_as, until_ms)
  leave(id, job, job.status, until_ms)
  remove_job(id, job)
  add(counts, counted_as, job.queue, 1)
end

-- Return up to `limit` ids that due entries name, those due first, the entries, and what is left of the last one.
local function read_due()
  local ids, entries, left, left_until = {}, {}, {}, nil
  repeat
    local due = redis.call('ZRANGEBYSCORE', K.expire, '-inf', now, 'WITHSCORES', 'LIMIT', #entries, READ_AT_ONCE)
    for position = 1, #due, 2 do
      if #ids >= limit then
        break
      end
      entries[#entries + 1], left_until = due[position], due[position + 1]
      for id in string.gmatch(due[position], '%S+') do
        local list = #ids < limit and ids or left
        list[#list + 1] = id
      end
    end
  until #ids >= limit or #due < 2 * READ_AT_ONCE
  return ids, entries, left, left_until
end

-- An entry is a hint: a job that is gone, not final, or to be kept for longer is passed over.
local function remove_due(id, text)
  local job = load(id, text)
  local until_ms = tonumber(job['until'])
  if PLACES[job.status] == 'final' and until_ms and until_ms <= now then
    remove_final(id, job, 'pruned')
    return true
  end
end

local function remove_aged()
  local ids, entries, left, left_until = read_due()
  local texts, removed, damaged = read_all(ids), 0, {}
  for index = 1, #ids do
    local ok, is_removed = pcall(remove_due, ids[index], texts[index])
    removed = removed + (is_removed == true and 1 or 0)
    if not ok then
      damaged[#damaged + 1] = ids[index]
    end
  end
  if entries[1] then
    redis.call('ZREM', K.expire, unpack(entries))
  end
  if left[1] then
    redis.call('ZADD', K.expire, left_until, table.concat(left, ' '))
  end
  -- A damaged job stops neither its neighbours nor the sweep, and is looked at again in a minute; the auditor names it.
  for _, id in ipairs(damaged) do
    redis.call('ZADD', K.expire, now + 60000, id)
  end
  return removed
end

local function drop_one(id, text, index_key, counted_as)
  local job = load(id, text)
  if PLACES[job.status] ~= 'final' then
    redis.call('ZREM', index_key, id)
    return 0
  end
  remove_final(id, job, counted_as, job['until'])
  return 1
end

-- A damaged job must not stop the sweep.
local function drop(id, text, index_key, counted_as)
  local ok, dropped = pcall(drop_one, id, text, index_key, counted_as)
  return ok and dropped or 0
end

local aged, capped = remove_aged(), 0

-- One ZCARD a queue; of very many queues a random share each time, so that a call stays short.
local queues = redis.call('SRANDMEMBER', K.queues, QUEUES_A_CALL)
local dead_removed = 0
for _, queue in ipairs(queues) do
  local excess = math.min(redis.call('ZCARD', K.dead(queue)) - dead_cap, limit - dead_removed)
  if excess > 0 then
    local ids = redis.call('ZRANGE', K.dead(queue), 0, excess - 1)
    local texts = read_all(ids)
    for index, id in ipairs(ids) do
      dead_removed = dead_removed + drop(id, texts[index], K.dead(queue), 'dead_dropped')
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
  local found, ids = oldest_finished(queues, excess), {}
  for position = 1, math.min(excess, #found) do
    ids[position] = found[position].id
  end
  local texts = read_all(ids)
  for position = 1, #ids do
    capped = capped + drop(ids[position], texts[position], found[position].index_key, 'dropped')
  end
end
flush()
return {aged, capped + dead_removed}

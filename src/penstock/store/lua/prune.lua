-- prune: remove final jobs past their retention, and those above the caps.
-- Guarantee: only final jobs go, each with all its keys, at most `limit` of each kind; above a cap, those that finished first.
-- KEYS: meta (hash), canary (none)
-- ARGV: limit, dead_cap, finished_cap
-- Returns: [removed by age, removed by cap]
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place
local QUEUES_A_CALL, ENTRIES_A_CALL, READ_AT_ONCE = 250, 750, 20
local limit, dead_cap, finished_cap = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local finished_before = tonumber(redis.call('HGET', K.gauges, 'finished:') or 0) or 0

-- Remove a group of final jobs that stand in one index: false when it is damaged.
local function remove_group(group, counted_as)
  local job, count = group.job, #group.ids
  if type(redis.pcall('ZREM', index_of(job, job.status), unpack(group.ids))) == 'table' then
    return false
  end
  redis.call('DEL', unpack(group.keys))
  tally(job, job.status, -count)
  add(counts, counted_as, job.queue, count)
  return true
end

-- Read jobs and remove the final ones, with `due_by` only those that may go by then. Of each index all go in one command, and all
-- their keys in another. Return how many went, the ids of damaged ones, and the places in `ids` of those that are not final. `is_named`
-- tells that entries of `expire` still name them.
local function remove_together(ids, counted_as, due_by, is_named)
  local texts, groups, group, size = read_all(ids), {}, nil, 0
  local removed, damaged, strays = 0, {}, {}
  loaded = {}
  for index = 1, #ids do
    local id = ids[index]
    if not loaded[id] then
      local ok, job = pcall(load, id, texts[index])
      local until_ms = ok and tonumber(job['until'])
      if not ok or (PLACES[job.status] == 'final' and type(job.queue) ~= 'string') then
        damaged[#damaged + 1] = id
      elseif PLACES[job.status] ~= 'final' then
        strays[#strays + 1] = index
      elseif not due_by or (until_ms and until_ms <= due_by) then
        if not (group and group.job.queue == job.queue and group.job.status == job.status) then
          group, size = {job = job, ids = {}, keys = {}}, 0
          groups[#groups + 1] = group
        end
        size = size + 1
        group.ids[size] = id
        add_keys(group.keys, id, job)
        if is_named and until_ms then
          strike(id, until_ms)
        end
      end
    end
  end
  for _, one in ipairs(groups) do
    if remove_group(one, counted_as) then
      removed = removed + #one.ids
    else
      for _, id in ipairs(one.ids) do
        damaged[#damaged + 1] = id
      end
    end
  end
  return removed, damaged, strays
end

-- Return up to `limit` ids that due entries name, those due first, the entries, and what is left of the last one.
local function read_due()
  local ids, entries, left, size, left_until = {}, {}, {}, 0, nil
  repeat
    local due = redis.call('ZRANGEBYSCORE', K.expire, '-inf', now, 'WITHSCORES', 'LIMIT', #entries, READ_AT_ONCE)
    for position = 1, #due, 2 do
      if size >= limit then
        break
      end
      entries[#entries + 1], left_until = due[position], due[position + 1]
      for id in string.gmatch(due[position], '%S+') do
        if size < limit then
          size = size + 1
          ids[size] = id
        else
          left[#left + 1] = id
        end
      end
    end
  until size >= limit or #due < 2 * READ_AT_ONCE
  return ids, entries, left, left_until
end

-- An entry is a hint: a job that is gone, not final, or to be kept for longer is passed over.
local function remove_aged()
  local ids, entries, left, left_until = read_due()
  local removed, damaged = remove_together(ids, 'pruned', now, false)
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

local aged, capped = remove_aged(), 0

-- One ZCARD a queue; of very many queues a random share each time, so that a call stays short.
local queues = redis.call('SRANDMEMBER', K.queues, QUEUES_A_CALL)
local dead_removed = 0
for _, queue in ipairs(queues) do
  local index_key = K.dead(queue)
  local excess = math.min(redis.call('ZCARD', index_key) - dead_cap, limit - dead_removed)
  if excess > 0 then
    local ids = redis.call('ZRANGE', index_key, 0, excess - 1)
    local removed, _, strays = remove_together(ids, 'dead_dropped', nil, true)
    for _, index in ipairs(strays) do
      redis.call('ZREM', index_key, ids[index])
    end
    dead_removed = dead_removed + removed
  end
end

-- Return up to `wanted` entries of the final indexes of queues, each {id, time, index}, those that finished first. Of many indexes only
-- the first few of each are looked at, more where more of all jobs lie, so that one that holds nearly all gives nearly all.
local function oldest_finished(queues, wanted, total)
  local found, size, few = {}, 0, math.floor(ENTRIES_A_CALL / (3 * #queues))
  for _, queue in ipairs(queues) do
    for _, status in ipairs({'completed', 'cancelled', 'expired'}) do
      local index_key = K.final(status, queue)
      local share = math.ceil(ENTRIES_A_CALL * redis.call('ZCARD', index_key) / total)
      local flat = redis.call('ZRANGE', index_key, 0, math.min(wanted, math.max(few, share)) - 1, 'WITHSCORES')
      for position = 1, #flat, 2 do
        size = size + 1
        found[size] = {flat[position], tonumber(flat[position + 1]), index_key}
      end
    end
  end
  -- Those of one index are in order already.
  if size > 0 and found[1][3] ~= found[size][3] then
    table.sort(found, function(a, b)
      if a[2] ~= b[2] then
        return a[2] < b[2]
      end
      return a[1] < b[1]
    end)
  end
  for position = wanted + 1, size do
    found[position] = nil
  end
  return found
end

local finished = finished_before + (gauges['finished:'] or 0)
local excess = math.min(finished - finished_cap, limit)
if excess > 0 then
  local found, ids = oldest_finished(queues, excess, finished), {}
  for position = 1, #found do
    ids[position] = found[position][1]
  end
  local removed, _, strays = remove_together(ids, 'dropped', nil, true)
  for _, index in ipairs(strays) do
    redis.call('ZREM', found[index][3], ids[index])
  end
  capped = removed
end
flush()
return {aged, capped + dead_removed}

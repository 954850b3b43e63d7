-- prune: remove final jobs past their retention, and those above the caps.
-- Guarantee: only final jobs go, each with all its keys, at most `limit` of each kind; above a cap, those of a queue that finished
--   first, and of several queues about those.
-- KEYS: meta (hash), canary (none)
-- ARGV: limit, dead_cap, finished_cap
-- Returns: [removed by age, removed by cap]
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place, peek
local QUEUES_A_CALL, ENTRIES_A_CALL, READ_AT_ONCE, ENTRIES_LOOKED_AT = 250, 750, 20, 10
-- A job may have six keys, and Lua unpacks less than 8,000 values.
local MOST_A_CALL = 1000
local limit, dead_cap, finished_cap = math.min(tonumber(ARGV[1]), MOST_A_CALL), tonumber(ARGV[2]), tonumber(ARGV[3])

-- A damaged key stops only what needs it, for what was done before it is to be counted: the totals are written last.
local gauge = redis.pcall('HGET', K.gauges, 'finished:')
local finished_before = type(gauge) == 'string' and tonumber(gauge) or 0

-- Remove a group of final jobs that stand in one index: false when it is damaged.
local function remove_group(group, counted_as)
  local job, count = group.job, #group.ids
  if type(redis.pcall('ZREM', group.index_key, unpack(group.ids))) == 'table' then
    return false
  end
  redis.call('DEL', unpack(group.keys))
  tally(job, job.status, -count)
  add(counts, counted_as, job.queue, count)
  return true
end

-- Read jobs and remove the final ones, with `due_by` only those that may go by then; else they stand in `index_keys`, and entries of
-- `expire` still name them. Of each index all go in one command, and all their keys in another. An entry that its job does not agree
-- with goes alone. Return how many jobs went, and the ids of damaged ones where no index is given; in an index those are put off.
local function remove_together(ids, counted_as, due_by, index_keys)
  local texts, groups, group, count, removed, damaged = read_all(ids), {}, nil, 0, 0, {}
  loaded = {}
  for place = 1, #ids do
    local id, found_in = ids[place], index_keys and index_keys[place]
    if not loaded[id] then
      local ok, job = pcall(load, id, texts[place])
      local until_ms = ok and tonumber(job['until'])
      local is_final = ok and PLACES[job.status] == 'final'
      if not ok or (is_final and type(job.queue) ~= 'string') then
        if found_in then
          put_off(found_in, id)
        else
          damaged[#damaged + 1] = id
        end
      elseif is_final and (not due_by or (until_ms and until_ms <= due_by)) then
        if not (group and group.job.queue == job.queue and group.job.status == job.status) then
          group, count = {job = job, ids = {}, keys = {}, index_key = index_of(job, job.status)}, 0
          groups[#groups + 1] = group
        end
        if found_in and found_in ~= group.index_key then
          redis.call('ZREM', found_in, id)
        else
          count = count + 1
          group.ids[count] = id
          add_keys(group.keys, id, job)
          if found_in and until_ms then
            strike(id, until_ms)
          end
        end
      elseif found_in then
        redis.call('ZREM', found_in, id)
      end
    end
  end
  for _, one in ipairs(groups) do
    if one.ids[1] and remove_group(one, counted_as) then
      removed = removed + #one.ids
    else
      for _, id in ipairs(one.ids) do
        damaged[#damaged + 1] = id
      end
    end
  end
  return removed, damaged
end

-- Return up to `limit` ids that due entries name, those due first, the entries, and what is left of the last one.
local function read_due()
  local ids, entries, left, count, left_until = {}, {}, {}, 0, nil
  repeat
    local due = redis.pcall('ZRANGEBYSCORE', K.expire, '-inf', now, 'WITHSCORES', 'LIMIT', #entries, READ_AT_ONCE)
    for position = 1, #due, 2 do
      if count >= limit then
        break
      end
      entries[#entries + 1], left_until = due[position], due[position + 1]
      for id in string.gmatch(due[position], '%S+') do
        if count < limit then
          count = count + 1
          ids[count] = id
        else
          left[#left + 1] = id
        end
      end
    end
  until count >= limit or #due < 2 * READ_AT_ONCE
  return ids, entries, left, left_until
end

-- An entry is a hint: a job that is gone, not final, or to be kept for longer is passed over.
local function remove_aged()
  local ids, entries, left, left_until = read_due()
  local removed, damaged = remove_together(ids, 'pruned', now)
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

-- Add the queues of some final jobs, of those that may go first and of any: where most lie is most likely among them.
local function add_queues_of_final(queues)
  local known, ids = {}, {}
  for _, queue in ipairs(queues) do
    known[queue] = true
  end
  for _, entries in ipairs({
    redis.pcall('ZRANGE', K.expire, 0, ENTRIES_LOOKED_AT - 1), redis.pcall('ZRANDMEMBER', K.expire, ENTRIES_LOOKED_AT)}) do
    for _, entry in ipairs(entries) do
      ids[#ids + 1] = string.match(entry, '%S+')
    end
  end
  loaded = {}
  for index, text in ipairs(read_all(ids)) do
    local ok, job = pcall(load, ids[index], text)
    if ok and type(job.queue) == 'string' and not known[job.queue] then
      known[job.queue] = true
      queues[#queues + 1] = job.queue
    end
  end
end

-- One ZCARD a queue; of very many queues a random share each time, so that a call stays short. By chance alone, one of thousands that
-- holds all the jobs would hardly ever be among them.
local queues = redis.pcall('SRANDMEMBER', K.queues, QUEUES_A_CALL)
if #queues == QUEUES_A_CALL then
  add_queues_of_final(queues)
end
local dead_removed = 0
for _, queue in ipairs(queues) do
  local index_key = K.dead(queue)
  local excess = math.min(size(index_key) - dead_cap, limit - dead_removed)
  if excess > 0 then
    local ids, index_keys = redis.call('ZRANGE', index_key, 0, excess - 1), {}
    for place = 1, #ids do
      index_keys[place] = index_key
    end
    local removed = remove_together(ids, 'dead_dropped', nil, index_keys)
    dead_removed = dead_removed + removed
  end
end

-- Return up to `wanted` entries of the final indexes of queues, each {id, time, index}, those that finished first. Of many indexes only
-- the first few of each are looked at, more where more of all jobs lie, so that one that holds nearly all gives nearly all.
local function oldest_finished(queues, wanted, total)
  local found, count, few = {}, 0, math.floor(ENTRIES_A_CALL / (3 * #queues))
  for _, queue in ipairs(queues) do
    for _, status in ipairs({'completed', 'cancelled', 'expired'}) do
      local index_key = K.final(status, queue)
      local length = size(index_key)
      if length > 0 then
        local share = math.ceil(ENTRIES_A_CALL * length / total)
        local flat = redis.call('ZRANGE', index_key, 0, math.min(wanted, math.max(few, share)) - 1, 'WITHSCORES')
        for position = 1, #flat, 2 do
          count = count + 1
          found[count] = {flat[position], tonumber(flat[position + 1]), index_key}
        end
      end
    end
  end
  -- Those of one index are in order already.
  if count > 0 and found[1][3] ~= found[count][3] then
    table.sort(found, function(a, b)
      if a[2] ~= b[2] then
        return a[2] < b[2]
      end
      return a[1] < b[1]
    end)
  end
  for position = wanted + 1, count do
    found[position] = nil
  end
  return found
end

local finished = finished_before + (gauges['finished:'] or 0)
local excess = math.min(finished - finished_cap, limit)
if excess > 0 then
  local found, ids, index_keys = oldest_finished(queues, excess, finished), {}, {}
  for place = 1, #found do
    ids[place], index_keys[place] = found[place][1], found[place][3]
  end
  capped = remove_together(ids, 'dropped', nil, index_keys)
end
flush()
return {aged, capped + dead_removed}

-- Move jobs of one call together: each index is written once and all jobs in one command, which costs a fraction of one by one.
-- What is done for each job here is kept to what it needs, because garbage is a third of a script's time.

-- Tell whether a job can be moved with others: it names its indexes, nobody waits for it, and no time of expiry or unique key goes
-- with it. The time of expiry of a job that runs is off its index. A damaged one is moved by itself, and fails by itself.
local function is_plain(job)
  if type(job.queue) ~= 'string' or type(job.priority) ~= 'string' or job.watch or job.unique then
    return false
  end
  if job.status == 'running' then
    return type(job.worker) == 'string'
  end
  return not job.expires
end

-- Sort moves by their indexes. Jobs of a call are mostly alike, so the last group is nearly always the right one. Those that are not
-- plain come back by themselves.
local function group_moves(moves, status, retention)
  local groups, group, others = {}, nil, {}
  local size, is_final = 0, PLACES[status] == 'final'
  for index = 1, #moves do
    local one = moves[index]
    local job = one.job
    if is_final then
      one.until_ms = one.at + kept_ms(job, status, retention)
    end
    if not is_plain(job) then
      others[#others + 1] = one
    else
      if not (group and group.job.queue == job.queue and group.job.priority == job.priority and group.job.worker == job.worker) then
        group, size = {job = job, moves = {}, ids = {}, scored = {}, leaving = {}}, 0
        groups[#groups + 1] = group
      end
      size = size + 1
      group.moves[size], group.ids[size] = one, one.id
      group.scored[2 * size - 1], group.scored[2 * size] = one.at, one.id
      if is_final then
        local ids = group.leaving[one.until_ms]
        if not ids then
          ids = {}
          group.leaving[one.until_ms] = ids
        end
        ids[#ids + 1] = one.id
      end
    end
  end
  return groups, others
end

-- Write the indexes that a group goes to; false when one is damaged.
local function enter_together(group, status)
  -- One claim gives all its jobs one deadline.
  if PLACES[status] == 'running' and not pcall(bound_lease, group.job.worker, group.scored[1]) then
    return false
  end
  if type(redis.pcall('ZADD', index_of(group.job, status), unpack(group.scored))) == 'table' then
    return false
  end
  for until_ms, ids in pairs(group.leaving) do
    if type(redis.pcall('ZADD', K.expire, until_ms, table.concat(ids, ' '))) == 'table' then
      return false
    end
  end
  return true
end

-- Take the jobs of a group out of the indexes where they stood. Should one stay behind, whoever meets the entry that its job does
-- not agree with removes it.
local function leave_together(group, before, status)
  local index_key = index_of(group.job, before)
  if index_key then
    redis.pcall('ZREM', index_key, unpack(group.ids))
  end
  tally(group.job, before, -#group.ids)
  tally(group.job, status, #group.ids)
  if PLACES[status] == 'delayed' then
    for _, one in ipairs(group.moves) do
      note_due(status, one.at)
    end
  end
end

local function move_alone(one, status)
  if one.texts then
    redis.call('MSET', unpack(one.texts))
  end
  move(one.id, one.job, status, one.at, {}, one.until_ms)
end

-- Move jobs of one status, or new ones, to another, each {id, job, at, texts: keys and what is to be stored there}, no id twice; the
-- jobs are changed already but for their status. `failed` is set on a move that could not be made. As in `move`, each enters before
-- it leaves. One that is not plain, and each whose index is damaged, is moved by itself, so that only those fail that belong to
-- what is damaged.
local function move_together(moves, status, retention)
  if #moves == 0 then
    return
  end
  local before, texts, size = moves[1].job.status, {}, 0
  local groups, others = group_moves(moves, status, retention)
  for _, group in ipairs(groups) do
    group.entered = enter_together(group, status)
    for index = 1, #group.moves do
      local one = group.moves[index]
      if group.entered then
        for place = 1, one.texts and #one.texts or 0 do
          size = size + 1
          texts[size] = one.texts[place]
        end
        one.job.status, one.job['until'] = status, one.until_ms
        one.text = cmsgpack.pack(one.job)
        texts[size + 1], texts[size + 2] = K.job(one.id), one.text
        size = size + 2
      else
        others[#others + 1] = one
      end
    end
  end
  if size > 0 then
    redis.call('MSET', unpack(texts))
  end
  for _, group in ipairs(groups) do
    if group.entered then
      leave_together(group, before, status)
    end
  end
  for _, one in ipairs(others) do
    local ok, failure = pcall(move_alone, one, status)
    one.failed = not ok and failure or nil
  end
end

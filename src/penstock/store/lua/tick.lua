-- tick: start the jobs of schedules' ticks and move the schedules on.
-- Guarantee: each tick once, however many loops see it: the schedule must stand where the caller read it, and a job's id follows
--   from the tick. Its jobs are written first, so that a call that breaks off is repeated and finds them.
-- KEYS: meta (hash), canary (none)
-- ARGV: items (msgpack: [name, revision, next tick that stands, next tick from now on or '', missed, overlap allowed 0|1, job [task, type, queue, priority, input, retention or nil], ticks [[id, options, planned ms, expires ms or nil]...]]...), bounds (msgpack: {queue: most waiting jobs})
-- Returns: per item [ticked, fired, skipped], [moved] or [error, text]
-- Transitions: none -submit-> queued
-- Flags: none (refused when out of memory)
-- Uses: time, job, place_names, place, together, unique, create
local items = cmsgpack.unpack(ARGV[1])
bounds = cmsgpack.unpack(ARGV[2])

local function is_busy(id)
  local status = id and load(id).status
  return status and PLACES[status] ~= 'final'
end

local function tick_one(item)
  local name, job, ticks = item[1], item[7], item[8]
  local key = K.schedule(name)
  local standing = redis.call('HMGET', key, 'revision', 'next', 'paused', 'last_job', 'last_tick', 'fired', 'skipped', 'missed')
  if standing[1] ~= item[2] or standing[2] ~= item[3] or standing[3] then
    return {'moved'}
  end
  local fired, skipped, last_job, last_tick = 0, 0, standing[4], standing[5]
  for _, tick in ipairs(ticks) do
    local code = 'full'
    if item[6] == 1 or not is_busy(last_job) then
      local new = {tick[1], job[1], job[2], job[3], job[4], job[5], tick[2]}
      new[10], new[12] = tick[4], job[6]
      code = submit_one(new, #ticks)[1]
      begun = nil
    end
    if code == 'full' then
      skipped = skipped + 1
    else
      fired, last_job, last_tick = fired + 1, tick[1], tick[3]
    end
  end
  local fields = {'fired', (tonumber(standing[6]) or 0) + fired, 'skipped', (tonumber(standing[7]) or 0) + skipped,
    'missed', (tonumber(standing[8]) or 0) + item[5]}
  if last_job then
    fields[7], fields[8], fields[9], fields[10] = 'last_job', last_job, 'last_tick', last_tick or ''
  end
  if item[4] == '' then
    redis.call('ZREM', K.schedule_due, name)
    redis.call('HDEL', key, 'next')
  else
    redis.call('ZADD', K.schedule_due, item[4], name)
    fields[#fields + 1] = 'next'
    fields[#fields + 1] = item[4]
  end
  redis.call('HSET', key, unpack(fields))
  for counter, amount in pairs({ticks_fired = fired, ticks_skipped = skipped, ticks_missed = item[5]}) do
    if amount > 0 then
      add(counts, counter, job[3], amount)
    end
  end
  return {'ticked', fired, skipped}
end

for index = 1, #items do
  local item = items[index]
  answers[index] = guarded(tick_one, item)
  if answers[index][1] == 'error' then
    if begun then
      take_back(begun, item[7][3], item[7][4])
      begun = nil
    end
    redis.pcall('ZADD', K.schedule_due, 'XX', now + 60000, item[1])
  end
end
flush()
return answers

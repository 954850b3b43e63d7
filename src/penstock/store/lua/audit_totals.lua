-- audit_totals: compare gauges, ready counts and markers with the indexes they stand for.
-- Guarantee: reads only; all are seen at one moment.
-- KEYS: meta (hash), canary (none)
-- ARGV: none_needed
-- Returns: per finding [name, code, detail]
-- Transitions: none
-- Flags: no-writes
-- Uses: time, job, peek
local findings = {}
local function compare(name, counted, actual)
  if counted ~= actual then
    findings[#findings + 1] = {name, 'wrong_counter', 'says ' .. counted .. ', there are ' .. actual}
  end
end

local function list(answer)
  return answer.err and {} or answer
end

local sums = {running = 0, delayed = 0, finished = 0}
local gauges = list(redis.pcall('HGETALL', K.gauges))
for index = 1, #gauges, 2 do
  local name = string.match(gauges[index], '^(%w+):')
  local count = tonumber(gauges[index + 1])
  if not count or count < 0 then
    findings[#findings + 1] = {'gauges ' .. gauges[index], 'wrong_counter', 'says ' .. gauges[index + 1]}
  elseif name and sums[name] then
    sums[name] = sums[name] + count
  end
end
local running = 0
for _, worker in ipairs(list(redis.pcall('ZRANGE', K.leases, 0, -1))) do
  running = running + size(K.running(worker))
end
compare('gauges running', sums.running, running)
compare('gauges delayed', sums.delayed, size(K.delayed))

-- Jobs that were lost before may wait for a process of their own, and then wake nobody.
local function is_for_any(queue_key)
  for _, id in ipairs(list(redis.pcall('ZRANGE', queue_key, 0, 99))) do
    local readable, job = pcall(load, id)
    if not readable or tonumber(job.lost or 0) == 0 then
      return true
    end
  end
  return false
end

local finished, listed = 0, {}
for _, queue in ipairs(list(redis.pcall('SMEMBERS', K.queues))) do
  for _, status in ipairs({'completed', 'cancelled', 'expired'}) do
    finished = finished + size(K.final(status, queue))
  end
  local holds_work = false
  for _, priority in ipairs({'critical', 'high', 'normal', 'low'}) do
    listed[queue .. ':' .. priority] = true
    local depth = size(K.queue(queue, priority))
    compare('ready ' .. queue .. ':' .. priority, tonumber(score(K.ready, queue .. ':' .. priority) or 0), depth)
    holds_work = holds_work or (depth > 0 and is_for_any(K.queue(queue, priority)))
  end
  local paused = redis.pcall('SISMEMBER', K.paused, queue) == 1
  if holds_work and not paused and redis.call('EXISTS', K.marker(queue)) == 0 then
    findings[#findings + 1] = {'marker ' .. queue, 'no_marker', 'jobs wait but an idle worker would not wake'}
  end
end
compare('gauges finished', sums.finished, finished)
for _, member in ipairs(list(redis.pcall('ZRANGE', K.ready, 0, -1))) do
  if not listed[member] then
    findings[#findings + 1] = {'ready ' .. member, 'unlisted_queue', 'jobs of this queue are not listed'}
  end
end
return findings

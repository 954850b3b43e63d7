-- audit_totals: compare gauges, ready counts and markers with the indexes they stand for.
-- Guarantee: reads only; all are seen at one moment.
-- KEYS: meta (hash), canary (none)
-- ARGV: none_needed
-- Returns: per finding [name, code, detail]
-- Transitions: none
-- Flags: no-writes
-- Uses: place_names
local findings = {}
local function compare(name, counted, actual)
  if counted ~= actual then
    findings[#findings + 1] = {name, 'wrong_counter', 'says ' .. counted .. ', there are ' .. actual}
  end
end

local sums = {running = 0, delayed = 0, finished = 0}
local gauges = redis.call('HGETALL', K.gauges)
for index = 1, #gauges, 2 do
  local name = string.match(gauges[index], '^(%w+):')
  if name and sums[name] then
    sums[name] = sums[name] + tonumber(gauges[index + 1])
  end
end
compare('gauges running', sums.running, redis.call('ZCARD', K.running))
compare('gauges delayed', sums.delayed, redis.call('ZCARD', K.delayed))

local finished = 0
for _, queue in ipairs(redis.call('SMEMBERS', K.queues)) do
  for _, status in ipairs({'completed', 'cancelled', 'expired'}) do
    finished = finished + redis.call('ZCARD', K.final(status, queue))
  end
  local holds_work = false
  for _, priority in ipairs({'critical', 'high', 'normal', 'low'}) do
    local depth = redis.call('ZCARD', K.queue(queue, priority))
    compare('ready ' .. queue .. ':' .. priority, tonumber(redis.call('ZSCORE', K.ready, queue .. ':' .. priority) or 0), depth)
    holds_work = holds_work or depth > 0
  end
  if holds_work and redis.call('EXISTS', K.marker(queue)) == 0 then
    findings[#findings + 1] = {'marker ' .. queue, 'no_marker', 'jobs wait but an idle worker would not wake'}
  end
end
compare('gauges finished', sums.finished, finished)
return findings

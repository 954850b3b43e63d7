-- audit_jobs: tell for each job in which places it is and what of it does not agree.
-- Guarantee: reads only; each job is seen at one moment.
-- KEYS: meta (hash), canary (none)
-- ARGV: ids (msgpack: [id...])
-- Returns: per id [status or '', finding code, detail, ...]
-- Transitions: none
-- Flags: no-writes
-- Uses: time, job, place_names, place, peek
local function is_named_for_removal(id, until_ms)
  -- By the entry of its time, or by one of its own that was put off.
  if not until_ms then
    return false
  end
  local alone = score(K.expire, id)
  if alone and tonumber(alone) >= until_ms then
    return true
  end
  local entries = redis.pcall('ZRANGEBYSCORE', K.expire, until_ms, until_ms)
  for _, entry in ipairs(entries.err and {} or entries) do
    if string.find(' ' .. entry .. ' ', ' ' .. id .. ' ', 1, true) then
      return true
    end
  end
  return false
end

local function audit_one(id)
  local job = load(id)
  if not next(job) then
    return {''}
  end
  local findings = {type(job.status) == 'string' and job.status or ''}
  local function find(code, detail)
    findings[#findings + 1] = code
    findings[#findings + 1] = detail
  end
  local place = PLACES[job.status]
  for _, name in ipairs({'status', 'queue', 'priority', 'task', 'created'}) do
    if not job[name] then
      find('damaged_job', 'the job has no ' .. name)
      return findings
    end
    if type(job[name]) ~= (name == 'created' and 'number' or 'string') then
      find('damaged_job', 'the ' .. name .. ' of the job is a ' .. type(job[name]))
      return findings
    end
  end
  if not place then
    find('damaged_job', 'the status ' .. job.status .. ' is unknown')
    return findings
  end
  local places, right = {}, false
  local function look(name, key, is_right)
    if score(key, id) then
      places[#places + 1] = name
      right = right or is_right
    end
  end
  for _, priority in ipairs({'critical', 'high', 'normal', 'low'}) do
    look('queue:' .. priority, K.queue(job.queue, priority), place == 'queue' and priority == job.priority)
  end
  look('delayed', K.delayed, place == 'delayed')
  if job.worker then
    look('running', K.running(job.worker), place == 'running')
  end
  look('dead', K.dead(job.queue), job.status == 'failed')
  for _, status in ipairs({'completed', 'cancelled', 'expired'}) do
    look('final:' .. status, K.final(status, job.queue), job.status == status)
  end
  if #places > 1 then
    find('two_places', table.concat(places, ' and '))
  elseif place == 'running' and #places == 0 then
    find('running_without_lease', 'the job runs but no lease would ever lapse')
  elseif #places == 0 then
    find('no_place', 'the job is ' .. job.status .. ' but in no index')
  elseif not right then
    find('wrong_place', 'the job is ' .. job.status .. ' but in ' .. places[1])
  end
  local deadline = place == 'running' and job.worker and score(K.running(job.worker), id)
  local bound = deadline and score(K.leases, job.worker)
  if deadline and not (bound and tonumber(bound) <= tonumber(deadline)) then
    find('unwatched_lease', 'the lease of the job is not looked at when it lapses: worker ' .. job.worker .. ' is '
      .. (bound and 'too late in leases' or 'not in leases'))
  end
  if place == 'final' and not is_named_for_removal(id, tonumber(job['until'])) then
    find('no_expiry', 'the job is ' .. job.status .. ' and would never be removed')
  end
  if job.expires and (place == 'queue' or place == 'delayed') and tonumber(job.attempt or 0) == 0 and not score(K.expiry, id) then
    find('no_deadline', 'the job has an expiry time but would not expire')
  end
  local digest, kept_until, last = unique_of(job)
  local called_off = job.status == 'cancelled' or job.status == 'expired'
  -- The server's own expiry may be early by a moment.
  if digest and (is_bound(job, kept_until) or (tonumber(last) > now + 1000 and not called_off)) then
    local _, holder = locked_by(digest)
    if holder ~= id then
      find('key_not_held', 'the job should hold its unique key, which is ' .. (holder and 'of ' .. holder or 'free'))
    end
  end
  if not job.input and redis.call('EXISTS', K.input(id)) == 0 then
    find('no_input', 'the job has no input')
  end
  return findings
end

local answers = {}
for index, id in ipairs(cmsgpack.unpack(ARGV[1])) do
  local readable, findings = pcall(audit_one, id)
  answers[index] = readable and findings or {'', 'damaged_job', 'the job cannot be read'}
end
return answers

-- Create jobs, each unless its id already stands; the script sets `bounds` ({queue: most waiting jobs}) first, and where items may
-- replace others `retention`.
local bounds, retention = {}, nil
-- How many jobs wait in each queue that has a bound, those of this call included.
local waiting = {}

local function is_full(queue)
  if not bounds[queue] then
    return false
  end
  if not waiting[queue] then
    local members = {}
    for index = 1, #PRIORITIES do
      members[index] = queue .. ':' .. PRIORITIES[index]
    end
    local depths = redis.call('ZMSCORE', K.ready, unpack(members))
    local delayed = redis.call('HGET', K.gauges, 'delayed:' .. queue)
    waiting[queue] = tonumber(delayed or 0) or 0
    for index = 1, #members do
      waiting[queue] = waiting[queue] + tonumber(depths[index] or 0)
    end
  end
  return waiting[queue] >= bounds[queue]
end

-- The id whose keys are being written.
local begun
local known_queues = {}

-- Create one job: [id, task, type, queue, priority, input, options, run_at, delay, expires_at, expires_in, retention, -, -, -, unique
-- digest, until, for_ms, on_conflict]. Places in queues are taken from the server in blocks of `block`.
local function submit_one(item, block)
  local id, task, job_type, queue, priority, input, options = item[1], item[2], item[3], item[4], item[5], item[6], item[7]
  -- First, so that no job ever stands in a queue that nobody lists.
  if not known_queues[queue] then
    redis.call('SADD', K.queues, queue)
    known_queues[queue] = true
  end
  -- EXISTS first: the common answer is no, at a third of the cost.
  if redis.call('EXISTS', K.job(id)) == 1 then
    local standing = load(id, {'status', 'created', 'due', 'expires'})
    if not (standing.status and standing.created) then
      error('the job that stands under this id is damaged')
    end
    return {'exists', id, standing.status, standing.created, PLACES[standing.status] == 'delayed' and standing.due or '', standing.expires or ''}
  end
  local digest, on_conflict = item[16], item[19]
  local holder = digest and holder_of(digest)
  if holder and on_conflict == 'return_existing' then
    add(counts, 'existing', queue, 1)
    local due = PLACES[holder.status] == 'delayed' and holder.due or ''
    return {'existing', holder.id, holder.status, holder.created, due, holder.expires or '', 'existing'}
  end
  if holder and not (on_conflict == 'replace' and (PLACES[holder.status] == 'queue' or PLACES[holder.status] == 'delayed')) then
    add(counts, 'conflicts', queue, 1)
    return {'held', holder.id, holder.status}
  end
  -- A replacement needs no room of its own in the queue where the job waited.
  if is_full(queue) and not (holder and holder.queue == queue) then
    add(counts, 'refused', queue, 1)
    return {'full'}
  end
  local due = item[8] or (item[9] and now + item[9])
  local expires = item[10] or (item[11] and now + item[11]) or nil
  local job = {queue = queue, priority = priority, expires = expires}
  local fields = {'status', '', 'task', task, 'queue', queue, 'priority', priority, 'created', now}
  local at
  if due and due > now then
    job.status, at = 'scheduled', due
    fields[#fields + 1] = 'due'
  else
    due = nil
    job.status, at = 'queued', next_seq(block)
    fields[#fields + 1] = 'seq'
  end
  fields[2] = job.status
  fields[#fields + 1] = at
  local function put(name, value)
    if value then
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  put('type', job_type ~= 'task' and job_type)
  put('head', options ~= '' and options)
  put('expires', expires)
  put('retention', item[12])
  local last = item[18] and now + item[18] or 0
  if digest then
    put('unique', string.format('%s|%s|%.0f', digest, item[17], last))
  end
  begun = id
  put_value(fields, 'input', K.input(id), input)
  redis.call('HSET', K.job(id), unpack(fields))
  enter(id, job, job.status, at)
  if holder then
    -- Counted before the holder leaves; the depths that it is read from are written last.
    is_full(holder.queue)
    -- Only now: a job that cannot be stored replaces nothing.
    finish(holder.id, holder, 'cancelled', {'cancel', now}, retention)
    add(counts, 'replaced', holder.queue, 1)
    if waiting[holder.queue] then
      waiting[holder.queue] = waiting[holder.queue] - 1
    end
  end
  if digest then
    lock(digest, last, id, now, '', item[17] ~= '')
  end
  add(counts, 'submitted', queue, 1)
  if waiting[queue] then
    waiting[queue] = waiting[queue] + 1
  end
  return {'created', id, job.status, now, due or '', expires or ''}
end

-- Redis does not roll back: what an item wrote before its error must not stay as half a job.
local function take_back(id, queue, priority)
  remove_job(id)
  for _, index_key in ipairs({K.queue(queue, priority), K.expiry}) do
    redis.pcall('ZREM', index_key, id)
  end
  if redis.pcall('ZREM', K.delayed, id) == 1 then
    add(gauges, 'delayed', queue, -1)
  end
end

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
-- What stands for the answer of most: created just now, queued, without an end.
local CREATED = 1
local answers = {}
-- New jobs of this call by id, and those that are written together, after all items were read.
local made, creations = {}, {scheduled = {}, queued = {}}

local function count_waiting(queue)
  if waiting[queue] then
    waiting[queue] = waiting[queue] + 1
  end
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

-- Write the new jobs that were put together; the answer of one that could not be written becomes its error.
local function create_together()
  for status, moves in pairs(creations) do
    move_together(moves, status)
    local created = {}
    for _, one in ipairs(moves) do
      if one.failed then
        take_back(one.id, one.job.queue, one.job.priority)
        answers[one.index] = {'error', text_of(one.failed)}
      else
        created[one.job.queue] = (created[one.job.queue] or 0) + 1
      end
    end
    for queue, count in pairs(created) do
      add(counts, 'submitted', queue, count)
    end
    creations[status] = {}
  end
end

-- Create one job: [id, task, type, queue, priority, input, options, run_at, delay, expires_at, expires_in, retention, -, -, -, unique
-- digest, until, for_ms, on_conflict]. Places in queues are taken from the server in blocks of `block`. With the `index` of its
-- answer, a plain job is written by `create_together`. It may be known not to stand: `is_new`.
local function submit_one(item, block, index, is_new)
  local id, task, job_type, queue, priority, input, options = item[1], item[2], item[3], item[4], item[5], item[6], item[7]
  if made[id] then
    create_together()
  end
  local standing = is_new and not made[id] and {} or load(id)
  if next(standing) then
    if not (standing.status and standing.created) then
      error('the job that stands under this id is damaged')
    end
    return {'exists', id, standing.status, standing.created, PLACES[standing.status] == 'delayed' and standing.due or '', standing.expires or ''}
  end
  -- Before any other write, so that no job ever stands in a queue that nobody lists.
  if not known_queues[queue] then
    redis.call('SADD', K.queues, queue)
    known_queues[queue] = true
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
  local job = {task = task, type = job_type ~= 'task' and job_type or nil, queue = queue, priority = priority, created = now,
    head = options ~= '' and options or nil, expires = expires, retention = item[12]}
  local status, at = 'queued', nil
  if due and due > now then
    status, at = 'scheduled', due
    job.due = at
  else
    due = nil
    at = next_seq(block)
    job.seq = at
  end
  local one = {id = id, job = job, at = at, texts = put_value(job, 'input', K.input, id, input), index = index}
  if one.texts then
    job.size = #input
  end
  if index and not digest and is_plain(job) then
    made[id] = true
    creations[status][#creations[status] + 1] = one
    count_waiting(queue)
    return due and {'created', id, status, now, due, ''} or CREATED
  end
  local last = item[18] and now + item[18] or 0
  if digest then
    job.unique = string.format('%s|%s|%.0f', digest, item[17], last)
  end
  begun, made[id] = id, true
  move_alone(one, status)
  if holder then
    -- Counted before the holder leaves; the depths that it is read from are written last.
    is_full(holder.queue)
    -- Only now: a job that cannot be stored replaces nothing.
    finish(holder.id, holder, 'cancelled', {cancel = now}, retention)
    add(counts, 'replaced', holder.queue, 1)
    if waiting[holder.queue] then
      waiting[holder.queue] = waiting[holder.queue] - 1
    end
  end
  if digest then
    lock(digest, last, id, now, '', item[17] ~= '')
  end
  add(counts, 'submitted', queue, 1)
  count_waiting(queue)
  return {'created', id, status, now, due or '', expires or ''}
end

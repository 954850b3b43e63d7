-- claim: hand out queued jobs to one worker: critical ones first, the rest strictly or by weights, then by arrival.
-- Guarantee: a job is handed out under one token at a time; jobs of unknown tasks are skipped or deferred, late ones expire;
--   nothing comes from a paused queue, and from none more than its limit. A job that was lost `alone_from` times is handed out to a claim for it alone, and to no other.
-- KEYS: meta (hash), canary (none)
-- ARGV: request (msgpack: [worker, nonce, limit, lease_ms, queues, tasks or nil, window_start, weights of high, normal, low or nil, of the queues or nil, draw, alone, limits of the queues or nil]), bounds (msgpack: [small_bytes, call_bytes, unknown_task_ms, retention_ms, failed_retention_ms, alone_from])
-- Returns: [now, next due or '', skipped, deferred, remaining 0|1, apart, deadline, jobs: [id, the job (msgpack), its input where that has a key of its own and is small...]]
-- Transitions: queued -claim-> running, queued -expire-> expired, queued -defer-> retrying, queued -fail-> failed
-- Flags: allow-oom
-- Uses: time, job, place_names, place, together, lease
local request, bounds = cmsgpack.unpack(ARGV[1]), cmsgpack.unpack(ARGV[2])
local worker, nonce, limit, lease_ms, window_start = request[1], request[2], request[3], request[4], request[7]
local alone = request[11] == true
if alone then
  limit = math.min(limit, 1)
end
local retention = {ms = bounds[4], failed_ms = bounds[5]}
local LOOK, TASK_LIVE_MS = 200, 60000
local answers, handed, skipped, deferred, bytes_left, deadline = {}, 0, 0, 0, bounds[2], now + lease_ms

local priority_weights, queue_weights, draw = request[8], request[9], request[10]
local queues, weights = {}, {}
-- How many more jobs may come from each queue, where there is a bound.
local room = {}
for index = 1, #request[5] do
  if not is_paused(request[5][index]) then
    queues[#queues + 1] = request[5][index]
    weights[#queues] = queue_weights and queue_weights[index] or 1
    room[queues[#queues]] = request[12] and request[12][index] or nil
  end
end
-- Jobs that stay for a claim that takes each alone, and how many of them each queue holds.
local apart, apart_of, is_apart = 0, {}, {}
-- How many jobs this call may hold when the class that is served now has got its share.
local bound = limit

local known
if request[6] then
  known = {}
  for index = 1, #request[6] do
    known[request[6][index]] = true
  end
end

local live = {}
local function known_elsewhere(name)
  if live[name] == nil then
    local seen = redis.call('ZSCORE', K.tasks, name)
    live[name] = (seen and tonumber(seen) > now - TASK_LIVE_MS) and true or false
  end
  return live[name]
end

-- Tell whether a job's input, which has a key of its own, goes with the answer.
local function takes_input(job)
  if not job.size or job.size > bounds[1] or job.size > bytes_left then
    return false
  end
  bytes_left = bytes_left - job.size
  return true
end

-- Jobs that are taken and not yet moved.
local handing = {}

-- Return 'claimed', 'skipped' (still in its place), 'apart' (the same) or 'gone' (left its place).
local function claim_one(queue_key, id, text)
  local job = load(id, text)
  if job.status ~= 'queued' then
    -- No such job, or one that is elsewhere: the job is the truth, so only this stray entry goes.
    redis.call('ZREM', queue_key, id)
    return 'gone'
  end
  if not (job.task and job.created) then
    error('the job is damaged: it has no task or creation time')
  end
  if job.expires and now >= tonumber(job.expires) and tonumber(job.attempt or 0) == 0 then
    finish(id, job, 'expired', {}, retention)
    return 'gone'
  end
  local name = job.type and '@' .. job.type or job.task
  if known and not known[name] then
    if known_elsewhere(name) then
      return 'skipped'
    end
    if now - math.max(tonumber(job.created), tonumber(job.redriven or 0)) >= bounds[3] then
      finish(id, job, 'failed', {reason = 'unknown_task'}, retention)
      return 'gone'
    end
    local tries = tonumber(job.no_handler or 0)
    local due = now + math.min(1000 * 2 ^ tries, 30000)
    move(id, job, 'retrying', due, {no_handler = tries + 1, due = due})
    add(counts, 'deferred', job.queue, 1)
    deferred = deferred + 1
    return 'gone'
  end
  if (tonumber(job.lost or 0) >= bounds[6]) ~= alone then
    if not alone and not is_apart[id] then
      is_apart[id] = true
      apart, apart_of[job.queue] = apart + 1, (apart_of[job.queue] or 0) + 1
    end
    return 'apart'
  end
  job.worker = worker
  job.attempt = tonumber(job.attempt or 0) + 1
  job.nonce, job.started, job.progress = nonce, now, nil
  if alone then
    job.alone = job.attempt
  end
  -- Read before the first write: a damaged input must not make a job run that nobody was handed.
  local input = takes_input(job) and redis.call('GET', K.input(id))
  handing[#handing + 1] = {id = id, job = job, at = deadline, input = input}
  return 'claimed'
end

-- Hand out what the last look took; return how many could not be moved: those stay.
local function hand_out()
  local failed, started, taken = 0, {}, handing
  handing = {}
  move_together(taken, 'running')
  for _, one in ipairs(taken) do
    if one.failed then
      failed = failed + 1
    else
      started[one.job.queue] = (started[one.job.queue] or 0) + 1
      handed = handed + 1
      local last = #answers
      answers[last + 1], answers[last + 2], answers[last + 3] = one.id, one.text or cmsgpack.pack(one.job), one.input or false
      if room[one.job.queue] then
        room[one.job.queue] = room[one.job.queue] - 1
      end
    end
  end
  for queue, count in pairs(started) do
    add(counts, 'started', queue, count)
  end
  return failed
end

-- Look at up to LOOK jobs from rank `from`; return how many were claimed or left, and how many stay skipped.
local function window(queue_key, from)
  local looked, moved, stayed, others = 0, 0, 0, 0
  while handed < bound and looked < LOOK do
    local last = from + stayed + math.min(bound - handed, LOOK - looked) - 1
    local ids = redis.call('ZRANGE', queue_key, from + stayed, last)
    if #ids == 0 then
      break
    end
    local texts = read_all(ids)
    for index = 1, #ids do
      looked = looked + 1
      local ok, outcome = pcall(claim_one, queue_key, ids[index], texts[index])
      if not ok or outcome == 'skipped' then
        -- A damaged job stays like one of another worker's, and must not stop the rest; the auditor names it.
        stayed = stayed + 1
      elseif outcome == 'apart' then
        stayed, others = stayed + 1, others + 1
      else
        moved = moved + 1
      end
    end
    local failed = hand_out()
    moved, stayed = moved - failed, stayed + failed
  end
  skipped = skipped + stayed - others
  return moved, stayed
end

local members = {}
for p = 1, 4 do
  for q = 1, #queues do
    members[#members + 1] = queues[q] .. ':' .. PRIORITIES[p]
  end
end
-- Hand out up to `share` jobs of one queue and priority, from behind those that a first turn skipped.
local function serve(class, share)
  local queue_key, from, before = K.queue(class.queue, class.priority), class.stayed, handed
  class.dry = true
  bound = math.min(limit, handed + share, handed + (room[class.queue] or share))
  local moved, stayed = window(queue_key, from)
  touch(class)
  class.stayed = from + stayed
  local depth = moved == 0 and stayed >= LOOK and redis.call('ZCARD', queue_key) or 0
  if depth > class.stayed then
    window(queue_key, class.stayed + math.floor(window_start * (depth - class.stayed)))
  end
  class.dry = handed - before < share
end

-- Split the slots by weight. A class that holds less than its part gets all it holds, and the others split what it leaves.
-- Then marks lie at equal distances over the weights laid end to end, the first one at random, and each class gets as many as
-- fall on it: its exact part rounded up or down, right on average, also for one slot.
local function split(slots, open)
  while slots > 0 and #open > 0 do
    local total, left, taken = 0, {}, 0
    for _, class in ipairs(open) do
      total = total + class.weight
    end
    for _, class in ipairs(open) do
      if class.depth * total <= slots * class.weight then
        class.share = class.depth
        taken = taken + class.depth
      else
        left[#left + 1] = class
      end
    end
    if #left == #open then
      local reached, given = 0, 0
      for _, class in ipairs(open) do
        reached = reached + class.weight
        local marks = math.ceil(reached * slots / total - draw)
        class.share, given = marks - given, marks
      end
      return
    end
    open, slots = left, slots - taken
  end
end

local function serve_level(classes)
  if priority_weights or queue_weights then
    split(limit - handed, classes)
    for _, class in ipairs(classes) do
      if class.share > 0 then
        pcall(serve, class, class.share)
      end
    end
  end
  -- Without weights all of it; with them what others left, because their jobs were not for this worker.
  for _, class in ipairs(classes) do
    if not class.dry and handed < limit then
      pcall(serve, class, limit - handed)
    end
  end
end

-- In chunks, because Lua unpacks a few thousand values at most.
local function ready_depths()
  local depths = {}
  for start = 1, #members, 4000 do
    for _, depth in ipairs(redis.call('ZMSCORE', K.ready, unpack(members, start, math.min(start + 3999, #members)))) do
      depths[#depths + 1] = depth
    end
  end
  return depths
end

local depths = ready_depths()
local levels, index = {{}, {}, {}, {}}, 0
for p = 1, 4 do
  for q = 1, #queues do
    index = index + 1
    if depths[index] then
      local level = levels[priority_weights and math.min(p, 2) or p]
      local weight = weights[q] * (priority_weights and priority_weights[p - 1] or 1)
      level[#level + 1] = {
        queue = queues[q], priority = PRIORITIES[p], depth = math.min(tonumber(depths[index]), room[queues[q]] or math.huge),
        weight = weight, share = 0, stayed = 0}
    end
  end
end
for level = 1, 4 do
  serve_level(levels[level])
end
flush()
if handed > 0 then
  -- A damaged key must not lose what was handed out.
  pcall(note_lease, lease_ms)
end

-- The woken worker took a marker; set each again where work is left, so that a wake-up is never lost with one worker.
local remaining = 0
depths = ready_depths()
for q = 1, #queues do
  local depth = 0
  for p = 0, 3 do
    depth = depth + (tonumber(depths[p * #queues + q]) or 0)
  end
  if depth > (apart_of[queues[q]] or 0) then
    if room[queues[q]] ~= 0 then
      remaining = 1
    end
    set_marker(queues[q], true)
  elseif depth > 0 then
    -- What is left runs alone, elsewhere; it must not wake those who cannot take it again and again.
    set_marker(queues[q], false)
  end
end
return {now, next_due(), skipped, deferred, remaining, apart, deadline, answers}

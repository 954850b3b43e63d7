-- Own the indexes: a job is in exactly one place, and `move` is the only way from one to another.
local counts, gauges, touched, struck = {}, {}, {}, {}
local earliest_entered

local function add(tally, name, queue, amount)
  local field = name .. ':' .. queue
  tally[field] = (tally[field] or 0) + amount
end

local function touch(job)
  local priorities = touched[job.queue]
  if not priorities then
    priorities = {}
    touched[job.queue] = priorities
  end
  priorities[job.priority] = true
end

local function final_key(job, status)
  if status == 'failed' then
    return K.dead(job.queue)
  end
  return K.final(status, job.queue)
end

-- Name the index of the place that belongs to `status`.
local function index_of(job, status)
  local place = PLACES[status]
  if place == 'queue' then
    return K.queue(job.queue, job.priority)
  elseif place == 'delayed' then
    return K.delayed
  elseif place == 'running' then
    return K.running(job.worker)
  elseif place == 'final' then
    return final_key(job, status)
  end
end

-- Keep: who runs jobs stands in `leases`, scored by no more than the first of their deadlines; for that is where the reaper looks. To be
-- called before a job gets its deadline. A score that is too low only makes the reaper look, so one write a call is enough.
local earliest_lapse = {}
local function bound_lease(worker, deadline)
  if not earliest_lapse[worker] or deadline < earliest_lapse[worker] then
    redis.call('ZADD', K.leases, 'LT', deadline, worker)
    earliest_lapse[worker] = deadline
  end
end

-- Count a job in or out of the place that belongs to `status`.
local function tally(job, status, amount)
  local place = PLACES[status]
  if place == 'queue' then
    touch(job)
  elseif place == 'delayed' then
    add(gauges, 'delayed', job.queue, amount)
  elseif place == 'running' then
    add(gauges, 'running', job.queue, amount)
  elseif place == 'final' and status ~= 'failed' then
    add(gauges, 'finished', '', amount)
  end
end

-- An entry of `expire` names jobs that became final in one call and may go at the same time, their ids with a space between; its score
-- is that time, which each of them has as its `until`. It is only a hint to look at them: `until` decides.

-- Strike a job off the entry that names it. `flush` rewrites an entry once, whatever number of its jobs left: those that go early would
-- otherwise stay in it until its time comes, which is most jobs where the cap removes them.
local function strike(id, until_ms)
  -- Not a number: no entry names it.
  if until_ms ~= until_ms then
    return
  end
  struck[until_ms] = struck[until_ms] or {}
  struck[until_ms][id] = true
end

local function rewrite_entries(until_ms, gone)
  local id = next(gone)
  if not next(gone, id) and redis.call('ZREM', K.expire, id) == 1 then
    return -- It ended alone: the entry was its own.
  end
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', K.expire, until_ms, until_ms)) do
    local ids, kept = 0, {}
    for id in string.gmatch(entry, '%S+') do
      ids = ids + 1
      if not gone[id] then
        kept[#kept + 1] = id
      end
    end
    if #kept < ids then
      if kept[1] then
        redis.call('ZADD', K.expire, until_ms, table.concat(kept, ' '))
      end
      redis.call('ZREM', K.expire, entry)
    end
  end
end

-- Take a job out of the place that belongs to `status`. Of a final one `until_ms` tells which entry of `expire` names it, if one does.
local function leave(id, job, status, until_ms)
  local index_key = index_of(job, status)
  if index_key then
    redis.call('ZREM', index_key, id)
  end
  if tonumber(until_ms) then
    strike(id, tonumber(until_ms))
  end
  tally(job, status, -1)
end

-- Tell the processes that wait for this job, which is to be stored: all at its end, at any other change those with a plus. One is
-- told once; it asks again when it has looked. News that are not the end come with a plus before the id.
local function notify(id, job, is_end)
  local left = ''
  for name in string.gmatch(job.watch, '%S+') do
    local follower = string.match(name, '^%+(.+)$')
    if follower or is_end then
      local inbox = K.inbox(follower or name)
      push_signal(inbox, is_end and id or '+' .. id)
      redis.call('LTRIM', inbox, -10000, -1)
      redis.call('EXPIRE', inbox, 120)
    else
      left = left .. ' ' .. name
    end
  end
  job.watch = left ~= '' and left or nil
end

local function note_due(status, at)
  if PLACES[status] == 'delayed' and (not earliest_entered or at < earliest_entered) then
    earliest_entered = at
  end
end

-- Put a job into the place that belongs to `status`. `at` is the score: seq, due time, lease deadline or finish time.
-- A final job may go at `until_ms`.
local function enter(id, job, status, at, until_ms)
  local place = PLACES[status]
  if place == 'running' then
    bound_lease(job.worker, at)
  end
  local index_key = index_of(job, status)
  if index_key then
    redis.call('ZADD', index_key, at, id)
  end
  if until_ms then
    redis.call('ZADD', K.expire, until_ms, id)
  end
  tally(job, status, 1)
  note_due(status, at)
  if job.watch then
    notify(id, job, place == 'final')
  end
  if job.expires then
    if (place == 'queue' or place == 'delayed') and tonumber(job.attempt or 0) == 0 then
      redis.call('ZADD', K.expiry, job.expires, id)
    else
      redis.call('ZREM', K.expiry, id)
    end
  end
end

-- Read a job's own word on its unique key, `digest|until|end`: until which event it holds it, and in any case to when
-- (Unix ms, 0 for no time).
local function unique_of(job)
  return string.match(job.unique or '', '^(%x+)|(%l*)|(%d+)$')
end

-- Tell whether an event is still to come up to which a job of this word holds its key.
local function is_bound(job, kept_until)
  return PLACES[job.status] ~= 'final' and (kept_until == 'finished' or (kept_until == 'started' and tonumber(job.attempt or 0) == 0))
end

-- Return who holds a unique key by its record: the end of its time, the id, its creation, its final status or ''.
local function locked_by(digest)
  local text = redis.pcall('GET', K.unique(digest))
  if type(text) ~= 'string' then
    return nil
  end
  local last, id, created, status = string.match(text, '^(%d+)|([^|]+)|(%d+)|(%l*)$')
  return tonumber(last), id, created, status
end

-- Give a unique key to a job. The server's own expiry only frees the memory once nothing but time holds the key.
local function lock(digest, last, id, created, status, bound)
  local text = string.format('%.0f|%s|%.0f|%s', last, id, tonumber(created), status)
  if bound then
    redis.call('SET', K.unique(digest), text)
  else
    redis.call('SET', K.unique(digest), text, 'PX', math.max(1, last - now))
  end
end

-- Free the unique key of a job that has just changed its status, unless it holds it further. What was called off (cancelled,
-- expired, or `forgotten`) also gives up the time that it asked for.
local function let_go(id, job, forgotten)
  local digest, kept_until = unique_of(job)
  if not digest or is_bound(job, kept_until) then
    return
  end
  local last, holder, created, status = locked_by(digest)
  if holder ~= id then
    return
  end
  if forgotten or last <= now or job.status == 'cancelled' or job.status == 'expired' then
    redis.call('DEL', K.unique(digest))
  else
    lock(digest, last, id, created, PLACES[job.status] == 'final' and job.status or '', false)
  end
end

-- See before the first write that a move to `status` can read what it needs of a job: what names its indexes, and who goes with it.
local NAMED_BY = {queue = 'priority', running = 'worker'}
local function check(job, status)
  local before, after = NAMED_BY[PLACES[job.status] or ''], NAMED_BY[PLACES[status]]
  if type(job.queue) ~= 'string' or (before and type(job[before]) ~= 'string') or (after and type(job[after]) ~= 'string') then
    error('the job is damaged: its queue, priority or worker is no text')
  elseif type(job.watch or '') ~= 'string' or type(job.unique or '') ~= 'string' or type(job.expires or 0) ~= 'number' then
    error('the job is damaged: who waits for it, its unique key or its time of expiry cannot be read')
  end
end

-- Move a job to another status; `changes` are written to it in the same breath.
-- It enters before it leaves: should a damaged key stop the script in between, the job is found twice, never nowhere, and
-- whoever meets the entry that it does not agree with removes it.
local function move(id, job, status, at, changes, until_ms)
  local before, until_before = job.status, job['until']
  check(job, status)
  enter(id, job, status, at, until_ms)
  apply(job, changes)
  job.status, job['until'] = status, until_ms
  store(id, job)
  leave(id, job, before, until_before)
  if job.unique then
    let_go(id, job)
  end
end

-- Return how long a final job is kept: for its own retention, else the state's; 0 keeps a tombstone of 60 s.
local function kept_ms(job, status, retention)
  local own_ms = tonumber(job.retention)
  local keep_ms = own_ms == own_ms and own_ms or (status == 'failed' and retention.failed_ms or retention.ms)
  return keep_ms == 0 and 60000 or keep_ms
end

local function finish(id, job, status, changes, retention)
  changes.finished = now
  move(id, job, status, now, changes, now + kept_ms(job, status, retention))
  add(counts, status, job.queue, 1)
end

-- Return a new place at the end of the queues; numbers are taken from the server in blocks of `block`.
local seq_next, seq_last
local function next_seq(block)
  if not seq_next or seq_next > seq_last then
    seq_last = redis.call('HINCRBY', K.counters, 'seq', block)
    seq_next = seq_last - block + 1
  end
  seq_next = seq_next + 1
  return seq_next - 1
end

-- Few queues are paused at a time: one read serves a claim of many queues. A damaged set stops nothing.
local paused
local function is_paused(queue)
  if not paused then
    paused = {}
    local names = redis.pcall('SMEMBERS', K.paused)
    for _, name in ipairs(names.err and {} or names) do
      paused[name] = true
    end
  end
  return paused[queue]
end

-- Keep: a queue holds a job and is not paused <=> its marker is set.
local function set_marker(queue, holds_work)
  local marker = K.marker(queue)
  if not holds_work or is_paused(queue) then
    redis.call('DEL', marker)
  elseif is_silent(marker) then
    push_signal(marker, '1')
  end
end

local PRIORITIES = {'critical', 'high', 'normal', 'low'}

local function keep_ready()
  for queue, priorities in pairs(touched) do
    local members = {}
    for index = 1, 4 do
      local priority = PRIORITIES[index]
      members[index] = queue .. ':' .. priority
      if priorities[priority] then
        local depth = redis.pcall('ZCARD', K.queue(queue, priority))
        if type(depth) == 'number' and depth > 0 then
          redis.call('ZADD', K.ready, depth, members[index])
        else
          redis.call('ZREM', K.ready, members[index])
        end
      end
    end
    local depths = redis.call('ZMSCORE', K.ready, unpack(members))
    set_marker(queue, (depths[1] or depths[2] or depths[3] or depths[4]) and true)
  end
end

-- Write what the moves of this call added up to. Call it once, last. What wakes workers comes first; a damaged counter
-- stops nothing. Where it cannot be kept which queues hold work, the call fails when the rest is written.
local function flush()
  local is_kept, failure = pcall(keep_ready)
  if earliest_entered then
    local first = redis.pcall('ZRANGE', K.delayed, 0, 0, 'WITHSCORES')
    if first[2] and tonumber(first[2]) >= earliest_entered and is_silent(K.due) then
      push_signal(K.due, '1')
    end
  end
  for field, amount in pairs(counts) do
    redis.pcall('HINCRBY', K.counters, field, amount)
  end
  for field, amount in pairs(gauges) do
    if amount ~= 0 then
      redis.pcall('HINCRBY', K.gauges, field, amount)
    end
  end
  for until_ms, gone in pairs(struck) do
    pcall(rewrite_entries, until_ms, gone)
  end
  if not is_kept then
    error(failure, 0)
  end
end

-- Asked last, after jobs were handed out: a damaged index must not lose that answer.
local function next_due()
  local first = redis.pcall('ZRANGE', K.delayed, 0, 0, 'WITHSCORES')
  return first[2] or ''
end

-- Run `one` for each id that is due in an index, by now or an earlier score `up_to`. A damaged job is put off for a minute, so that it neither stops the sweep nor
-- is met again at once; the auditor names it.
local function put_off(index_key, id)
  redis.pcall('ZADD', index_key, 'XX', now + 60000, id)
end

local function sweep(index_key, limit, one, up_to)
  -- Of a damaged index nothing: the sweeps before this one have moved jobs, and what they add up to is to be written.
  local ids = redis.pcall('ZRANGEBYSCORE', index_key, '-inf', up_to or now, 'LIMIT', 0, limit)
  local texts = read_all(ids)
  for index, id in ipairs(ids) do
    if not pcall(one, id, texts[index]) then
      put_off(index_key, id)
    end
  end
end

local function text_of(failure)
  return type(failure) == 'table' and (failure.err or 'error') or tostring(failure)
end

-- Run `one` for an item; an error becomes the item's answer and does not stop the rest.
local function guarded(one, ...)
  local ok, answer = pcall(one, ...)
  if ok then
    return answer
  end
  return {'error', text_of(answer)}
end

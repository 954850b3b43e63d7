-- output: store what running attempts log and stream, each under its token.
-- Guarantee: the token is compared before the first write, and a stale one writes nothing; a repeat stores nothing twice; above a
--   cap the oldest entries go and are counted.
-- KEYS: meta (hash), canary (none)
-- ARGV: items (msgpack: [id, attempt, nonce, made before, dropped lines, dropped chunks, kinds, values]...), caps (msgpack: [log lines, log bytes, stream chunks, stream bytes])
-- Returns: per item [done|stale] or [error, text]
-- Transitions: none
-- Flags: none (refused when out of memory)
-- Uses: time, job, place_names, place, output
local items, caps = cmsgpack.unpack(ARGV[1]), cmsgpack.unpack(ARGV[2])
local CAPS = {log = {count = caps[1], bytes = caps[2]}, stream = {count = caps[3], bytes = caps[4]}}

-- Write the new entries of one kind, then take off the oldest above its caps.
local function append(kind, one, queue)
  local cap, dropped = CAPS[kind], 0
  if #one.fresh > 0 then
    redis.call('RPUSH', one.key, unpack(one.fresh))
    one.kept = one.kept + #one.fresh
  end
  while one.kept > cap.count or (one.bytes > cap.bytes and one.kept > 0) do
    one.bytes = one.bytes - #redis.call('LPOP', one.key)
    one.kept = one.kept - 1
    dropped = dropped + 1
  end
  if dropped + one.lost > 0 then
    add(counts, kind .. '_dropped', queue, dropped + one.lost)
  end
end

local function output_one(item)
  local id, attempt, made, kinds, values = item[1], item[2], item[4], item[7], item[8]
  local job = load(id)
  if job.status ~= 'running' or tonumber(job.attempt) ~= attempt or job.nonce ~= item[3] then
    return {'stale'}
  end
  local tally = read_tally(job.output)
  read_kept(tally, id)
  if tally.attempt ~= attempt then
    tally.attempt, tally.made = attempt, 0
  end
  tally.log.lost, tally.stream.lost = 0, 0
  if made > tally.made then
    tally.log.lost, tally.stream.lost = item[5], item[6]
  end
  tally.log.fresh, tally.stream.fresh = {}, {}
  for index = 1, #values do
    -- What an earlier call has stored, whose answer was lost, comes again.
    if made + index > tally.made then
      local one = tally[kinds[index]]
      one.stored = one.stored + 1
      local text = string.format('%d|%.0f|%d|%s', attempt, now, tally.log.stored + tally.stream.stored, values[index])
      one.bytes = one.bytes + #text
      one.fresh[#one.fresh + 1] = text
    end
  end
  tally.made = math.max(tally.made, made + #values)
  append('log', tally.log, job.queue)
  append('stream', tally.stream, job.queue)
  local log, stream = tally.log, tally.stream
  job.output = string.format('%d|%d|%d|%d|%d|%d|%d|%d', attempt, tally.made,
    log.stored, log.bytes, log.missing + log.lost, stream.stored, stream.bytes, stream.missing + stream.lost)
  if job.watch then
    notify(id, job, false)
  end
  store(id, job)
  return {'done'}
end

local answers = {}
for index = 1, #items do
  answers[index] = guarded(output_one, items[index])
end
flush()
return answers

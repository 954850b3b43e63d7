-- redrive: queue failed jobs again; start scheduled and retrying ones now.
-- Guarantee: a failed job starts afresh (counted and lost are 0 again) and keeps the records of its attempts; never beside
--   another job that holds its unique key.
-- KEYS: meta (hash), canary (none)
-- ARGV: ids (msgpack: [id...]), early 0|1
-- Returns: per id [done|conflict|missing, status or '', ''], [held, status, id of the holder] or [error, text]
-- Transitions: failed -redrive-> queued, scheduled -due-> queued, retrying -due-> queued
-- Flags: allow-oom
-- Uses: time, job, place_names, place, unique
local ids, early = cmsgpack.unpack(ARGV[1]), ARGV[2] == '1'

local function redrive_one(id)
  local job = load(id)
  if not job.status then
    return {'missing', '', ''}
  end
  if job.status == 'failed' then
    local digest, kept_until, last = unique_of(job)
    local bound = digest and is_bound({status = 'queued', attempt = job.attempt}, kept_until)
    local holder = bound and holder_of(digest)
    if holder and holder.id ~= id then
      return {'held', job.status, holder.id}
    end
    local seq = next_seq(#ids)
    move(id, job, 'queued', seq, {seq = seq, counted = false, lost = false, redriven = now, reason = false, finished = false,
      cancel = false, settled = false, no_handler = false, progress = false, due = false})
    if bound then
      lock(digest, tonumber(last), id, job.created, '', true)
    end
    add(counts, 'redriven', job.queue, 1)
  elseif early and PLACES[job.status] == 'delayed' then
    local seq = next_seq(#ids)
    move(id, job, 'queued', seq, {seq = seq, due = false})
  else
    return {'conflict', job.status, ''}
  end
  return {'done', job.status, ''}
end

local answers = {}
for index = 1, #ids do
  answers[index] = guarded(redrive_one, ids[index])
end
flush()
return answers

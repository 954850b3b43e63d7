-- audit_entries: tell for each entry of an index whether the job it names agrees.
-- Guarantee: reads only; each entry is seen at one moment; an entry that has left its index is no finding.
-- KEYS: meta (hash), canary (none)
-- ARGV: index key without the prefix, status wanted (a status, or 'queue', 'delayed', 'final', 'waiting', 'running'), queue (the worker for 'running') or '', ids (msgpack: [id...])
-- Returns: per finding [id, code, detail]
-- Transitions: none
-- Flags: no-writes
-- Uses: job, place_names, peek
local index_key, wanted, queue = P .. ARGV[1], ARGV[2], ARGV[3]

local function agrees(job)
  local place = PLACES[job.status]
  if wanted == 'running' then
    return place == 'running' and job.worker == queue
  end
  if queue ~= '' and job.queue ~= queue then
    return false
  end
  return job.status == wanted or place == wanted or (wanted == 'waiting' and (place == 'queue' or place == 'delayed'))
end

local findings = {}
for _, id in ipairs(cmsgpack.unpack(ARGV[4])) do
  if score(index_key, id) then
    local readable, job = pcall(load, id)
    if not readable then
      job = {}
    end
    if not job.status then
      findings[#findings + 1] = {id, 'job_missing', 'named by ' .. ARGV[1] .. ' but there is no such job'}
    elseif not agrees(job) then
      findings[#findings + 1] = {id, 'wrong_index', 'named by ' .. ARGV[1] .. ' but is ' .. tostring(job.status) .. ' in queue ' .. tostring(job.queue or '?')}
    end
  end
end
return findings

-- audit_locks: tell for each unique key that is locked whether the job it names holds it.
-- Guarantee: reads only; each key is seen at one moment; one that is free by now is no finding.
-- KEYS: meta (hash), canary (none)
-- ARGV: digests (msgpack: [digest...])
-- Returns: per finding [digest, code, detail]
-- Transitions: none
-- Flags: no-writes
-- Uses: time, job, place_names, place
local findings = {}

local function audit_one(digest)
  if redis.call('EXISTS', K.unique(digest)) == 0 then
    return
  end
  local last, id = locked_by(digest)
  if not id then
    findings[#findings + 1] = {digest, 'stray_lock', 'the record of the unique key cannot be read'}
    return
  end
  local job = load(id)
  local own, kept_until = unique_of(job)
  local bound = job.status and own == digest and is_bound(job, kept_until)
  -- One that time holds goes with its time, give or take the moment in which this looks.
  if not bound and last == 0 then
    local detail = 'the unique key is kept for ' .. id .. ', which is ' .. (job.status or 'gone') .. ' and does not hold it'
    findings[#findings + 1] = {digest, 'stray_lock', detail}
  elseif not bound and redis.call('PTTL', K.unique(digest)) == -1 then
    findings[#findings + 1] = {digest, 'never_vanishes', 'has no time to live, so that it would stay for ever'}
  end
end

for _, digest in ipairs(cmsgpack.unpack(ARGV[1])) do
  -- A damaged job is a finding of its own.
  pcall(audit_one, digest)
end
return findings

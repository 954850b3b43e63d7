-- watch: tell a process when a job becomes final.
-- Guarantee: either the job is final in the answer, or its id comes to the process' inbox when it becomes so.
-- KEYS: meta (hash), canary (none)
-- ARGV: id, process
-- Returns: status, or '' when there is no such job
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place
local id, process = ARGV[1], ARGV[2]
local job = load(id, {'status', 'watch'})
if job.status and PLACES[job.status] ~= 'final' then
  local others, count = '', 0
  for name in string.gmatch(job.watch or '', '%S+') do
    -- A process that died never takes its name off: only the newest few are kept.
    if name ~= process then
      others, count = others .. ' ' .. name, count + 1
    end
  end
  if count >= 16 then
    others = string.gsub(others, '^ %S+', '')
  end
  redis.call('HSET', K.job(id), 'watch', process .. others)
end
return job.status or ''

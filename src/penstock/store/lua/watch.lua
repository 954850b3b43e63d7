-- watch: tell a process when a job becomes final.
-- Guarantee: either the job is final in the answer, or its id comes to the process' inbox when it becomes so.
-- KEYS: meta (hash), canary (none)
-- ARGV: id, process
-- Returns: status, or '' when there is no such job
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place, watch
local id, process = ARGV[1], ARGV[2]
local job = load(id)
if job.status and PLACES[job.status] ~= 'final' then
  register(id, job, process)
end
return job.status or ''

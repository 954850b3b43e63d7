-- follow: tell how a job stands and which entries of its output come after those seen; where none do, tell of its next change.
-- Guarantee: either there is news in the answer, or the job's id comes to the process' inbox at its next change.
-- KEYS: meta (hash), canary (none)
-- ARGV: id, process or '', log position or -1 for none, stream position or -1 for none, limit
-- Returns: [] when there is no such job, else [fields in the order of FIELDS, log: [position before the first, dropped, entries], stream: the same]
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place, output, watch
local id, process, limit = ARGV[1], ARGV[2], tonumber(ARGV[5])
local FIELDS = {'status', 'attempt', 'counted', 'lost', 'no_handler', 'due', 'cancel', 'finished', 'progress'}

local function read(one, seen)
  local before = one.stored - one.kept
  local dropped = before + one.missing
  if seen < 0 then
    return {0, dropped, {}}
  end
  -- More seen than was ever stored: a failover lost what came after. All that is kept is new then.
  local from = seen > one.stored and before or math.max(seen, before)
  return {from, dropped, redis.call('LRANGE', one.key, from - before, from - before + limit - 1)}
end

local job = load(id)
if not job.status then
  return {}
end
local tally = read_tally(job.output)
read_kept(tally, id)
local log, stream = read(tally.log, tonumber(ARGV[3])), read(tally.stream, tonumber(ARGV[4]))
if process ~= '' and #log[3] == 0 and #stream[3] == 0 and PLACES[job.status] ~= 'final' then
  register(id, job, '+' .. process)
end
local fields = {}
for index, name in ipairs(FIELDS) do
  fields[index] = job[name] or false
end
return {fields, log, stream}

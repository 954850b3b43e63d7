-- Note at a job who is to be told of it; a plus before the name asks for any change, else its end is told.
local function register(id, job, name)
  local others, count = '', 0
  for other in string.gmatch(job.watch or '', '%S+') do
    -- A process that died never takes its name off: only the newest few are kept.
    if other ~= name then
      others, count = others .. ' ' .. other, count + 1
    end
  end
  if count >= 16 then
    others = string.gsub(others, ' %S+$', '')
  end
  job.watch = name .. others
  store(id, job)
end

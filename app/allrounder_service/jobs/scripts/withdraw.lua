#!lua flags=allow-oom
-- End the waiting lines of a batch, and mark the running ones to be stopped.
-- ARGV: batch, fencing token, number of the first line, how many, window -> lines withdrawn, or -1
local batch = ARGV[1]
local b = get('batch', batch, 'fence', 'ending', 'submitted')
if b[1] ~= ARGV[2] or not b[2] or b[2] == '' then return -1 end
local first, withdrawn = tonumber(ARGV[3]), 0
for line = first, math.min(first + ARGV[4], number(b[3])) - 1 do
  local job = batch .. '/' .. line
  local state = redis.call('HGET', P .. 'job:' .. job, 'state')
  if state == 'queued' then
    publish(job, b[2], '', false, tonumber(ARGV[5]))
    withdrawn = withdrawn + 1
  elseif state == 'running' then
    redis.call('HSET', P .. 'job:' .. job, 'cancel', b[2])
  end
end
return withdrawn

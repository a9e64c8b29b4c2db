#!lua
-- Put lines of a batch into its tenant's backlog. A line that is there already is left alone.
-- ARGV: batch, fence, window, number of the first line, then a reference for each line
local batch, key = ARGV[1], P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'fence', 'status', 'tenant', 'ending', 'submitted')
if b[1] ~= ARGV[2] or b[2] ~= 'in_progress' or b[4] ~= '' then return 0 end
local first, t = tonumber(ARGV[4]), now()
for i = 5, #ARGV do
  local job = batch .. '/' .. (first + i - 5)
  if redis.call('HSETNX', P .. 'job:' .. job, 'state', 'queued') == 1 then
    redis.call('HSET', P .. 'job:' .. job, 'batch', batch, 'tenant', b[3], 'ref', ARGV[i],
      'fence', 0, 'attempts', 0, 'crashes', 0, 'solo_crashes', 0, 'published', 0, 'cancel', '',
      'created_ms', t)
    redis.call('RPUSH', P .. 'backlog:' .. b[3], job)
  end
end
local last = first + #ARGV - 4
if last > number(b[5]) then redis.call('HSET', key, 'submitted', last) end
promote(b[3], tonumber(ARGV[3]))
return 1

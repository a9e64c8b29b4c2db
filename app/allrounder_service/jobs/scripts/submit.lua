#!lua
-- Append lines of a batch to its tenant's backlog. Lines that were submitted before are kept.
-- ARGV: batch, fencing token, window, number of the first line, then a reference for each line
-- -> 1, or 0 where the token is stale, or the lines leave a gap or exceed the batch
local batch, key = ARGV[1], P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'fence', 'status', 'tenant', 'ending', 'submitted', 'total', 'next')
if b[1] ~= ARGV[2] or b[2] ~= 'in_progress' or b[4] ~= '' then return 0 end
local first, t = tonumber(ARGV[4]), now()
local last, submitted = first + #ARGV - 4, number(b[5])
if first > submitted or last > number(b[6]) then return 0 end
for i = 5, #ARGV do
  local job = P .. 'job:' .. batch .. '/' .. (first + i - 5)
  if redis.call('HSETNX', job, 'state', 'queued') == 1 then
    redis.call('HSET', job, 'batch', batch, 'tenant', b[3], 'ref', ARGV[i], 'fence', 0,
      'attempts', 0, 'crashes', 0, 'solo_crashes', 0, 'published', 0, 'cancel', '', 'created_ms', t)
  end
end
if last > submitted then
  redis.call('HSET', key, 'submitted', last)
  if number(b[7]) == submitted then redis.call('RPUSH', P .. 'backlog:' .. b[3], batch) end
end
promote(b[3], tonumber(ARGV[3]))
return 1

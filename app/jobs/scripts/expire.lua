#!lua flags=allow-oom
-- The time of a batch is over. Its lines are withdrawn by the steward.
-- ARGV: batch, fence
local batch, key = ARGV[1], P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'status', 'fence', 'total', 'submitted', 'expires_ms', 'ending',
  'tenant')
if b[2] ~= ARGV[2] or b[6] ~= '' or number(b[5]) > now() then return 0 end
if b[1] ~= 'validating' and b[1] ~= 'in_progress' then return 0 end
local withheld = number(b[3]) - number(b[4])
redis.call('HSET', key, 'ending', 'expired', 'status', 'in_progress', 'withheld', withheld)
count_down(b[7], withheld)
redis.call('HINCRBY', key, 'failed', withheld)
if redis.call('HINCRBY', key, 'remaining', -withheld) == 0 then settle(batch) end
return 1

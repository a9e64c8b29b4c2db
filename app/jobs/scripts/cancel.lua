#!lua flags=allow-oom
-- The caller wants no more of a batch. Its lines are withdrawn by the steward.
-- ARGV: batch, tenant -> its status afterwards, or '' where the tenant has no such batch
local batch, key = ARGV[1], P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'status', 'tenant', 'total', 'submitted')
if b[2] ~= ARGV[2] then return '' end
if b[1] ~= 'validating' and b[1] ~= 'in_progress' then return b[1] end
local t, withheld = now(), number(b[3]) - number(b[4])
redis.call('HSET', key, 'status', 'cancelling', 'cancelling_ms', t, 'ending', 'cancelled',
  'withheld', withheld)
count_down(b[2], withheld)
redis.call('HINCRBY', key, 'remaining', -withheld)
redis.call('HINCRBY', key, 'failed', withheld)
redis.call('ZADD', P .. 'care', t, batch)
return 'cancelling'

#!lua flags=allow-oom
-- The caller wants no more of a batch. Its lines are withdrawn by the steward.
-- ARGV: batch, tenant -> its status afterwards, or '' where the tenant has no such batch
local batch, key = ARGV[1], P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'status', 'tenant', 'ending')
if b[2] ~= ARGV[2] then return '' end
-- Its time may be over already: then it ends as expired.
if b[3] ~= '' or (b[1] ~= 'validating' and b[1] ~= 'in_progress') then return b[1] end
local t = now()
call_off(batch, 'cancelled', 'cancelling')
redis.call('HSET', key, 'cancelling_ms', t)
redis.call('ZADD', P .. 'care', t, batch)
return 'cancelling'

#!lua flags=allow-oom
-- Cancel a batch at the caller's request. The batch controller withdraws its lines.
-- ARGV: batch, tenant -> its status afterwards, or '' where the tenant has no such batch
local batch, key = ARGV[1], P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'status', 'tenant', 'ending')
if b[2] ~= ARGV[2] then return '' end
-- A batch that has expired already ends as expired.
if b[3] ~= '' or (b[1] ~= 'validating' and b[1] ~= 'in_progress') then return b[1] end
local t = now()
stop_submission(batch, 'cancelled', 'cancelling')
redis.call('HSET', key, 'cancelling_ms', t)
redis.call('ZADD', DUE, t, batch)
return 'cancelling'

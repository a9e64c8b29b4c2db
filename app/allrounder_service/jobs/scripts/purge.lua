#!lua flags=allow-oom
-- The record of a batch that has ended goes with the next clean-up.
-- ARGV: batch -> 0: there is none, or it has not ended
local key = P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'status', 'forget_ms')
if not b[1] or not b[2] then return 0 end
redis.call('HSET', key, 'forget_ms', 0)
redis.call('ZADD', P .. 'care', 0, ARGV[1])
return 1

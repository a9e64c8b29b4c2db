#!lua flags=allow-oom
-- Make the record of an ended batch due for deletion at once.
-- ARGV: batch -> 0: there is none, or it has not ended
local key = P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'status', 'forget_ms')
if not b[1] or not b[2] then return 0 end
redis.call('HSET', key, 'forget_ms', 0)
redis.call('ZADD', DUE, 0, ARGV[1])
return 1

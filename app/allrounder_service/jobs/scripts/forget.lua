#!lua flags=allow-oom
-- Delete the record of a batch whose retention is over.
-- ARGV: batch, fencing token
local key = P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'fence', 'swept', 'forget_ms', 'tenant')
if b[1] ~= ARGV[2] or b[2] ~= '1' or number(b[3]) > now() then return 0 end
redis.call('DEL', key)
redis.call('ZREM', P .. 'batches:' .. b[4], ARGV[1])
redis.call('ZREM', DUE, ARGV[1])
return 1

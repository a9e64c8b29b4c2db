#!lua flags=allow-oom
-- Renew the lease of a batch controller (lease > 0), or hand the batch back (lease 0).
-- ARGV: batch, fencing token, lease in ms, poll in ms -> 0: another controller has the lease
if redis.call('HGET', P .. 'batch:' .. ARGV[1], 'fence') ~= ARGV[2] then return 0 end
local lease = tonumber(ARGV[3])
redis.call('ZADD', DUE, lease > 0 and now() + lease or next_due(ARGV[1], ARGV[4]), ARGV[1])
return 1

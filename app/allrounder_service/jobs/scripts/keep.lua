#!lua flags=allow-oom
-- A steward goes on with its batch (lease > 0), or hands it back (lease 0).
-- ARGV: batch, fence, lease in ms, poll in ms -> 0: it is no longer its steward
if redis.call('HGET', P .. 'batch:' .. ARGV[1], 'fence') ~= ARGV[2] then return 0 end
local lease = tonumber(ARGV[3])
redis.call('ZADD', P .. 'care', lease > 0 and now() + lease or due(ARGV[1], ARGV[4]), ARGV[1])
return 1

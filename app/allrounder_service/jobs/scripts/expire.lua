#!lua flags=allow-oom
-- The time of a batch is over. Its lines are withdrawn by the steward.
-- ARGV: batch, fence -> 1 done, 2 so it was before, 0 refused
local batch, key = ARGV[1], P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'status', 'fence', 'expires_ms', 'ending')
if b[2] ~= ARGV[2] or number(b[3]) > now() then return 0 end
if b[4] ~= '' then return b[4] == 'expired' and 2 or 0 end
if b[1] ~= 'validating' and b[1] ~= 'in_progress' then return 0 end
if call_off(batch, 'expired', 'in_progress') == 0 then settle(batch) end
return 1

#!lua flags=allow-oom
-- End the completion window of a batch. The batch controller withdraws its lines.
-- ARGV: batch, fencing token -> 1 done, 2 repeated, 0 refused
local batch, key = ARGV[1], P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'status', 'fence', 'expires_ms', 'ending')
if b[2] ~= ARGV[2] or number(b[3]) > now() then return 0 end
if b[4] ~= '' then return b[4] == 'expired' and 2 or 0 end
if b[1] ~= 'validating' and b[1] ~= 'in_progress' then return 0 end
if stop_submission(batch, 'expired', 'in_progress') == 0 then lines_ended(batch) end
return 1

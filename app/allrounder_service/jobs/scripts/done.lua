#!lua flags=allow-oom
-- Publish the result of a line, unless its fencing token is stale.
-- ARGV: job, fencing token, state, result, good (1 or 0), window
-- -> 1 published, 2 repeated, 0 stale
local j = get('job', ARGV[1], 'state', 'fence', 'result', 'cancel')
if j[2] == ARGV[2] and j[1] == 'running' then
  -- A line that was stopped because its batch expired has expired.
  local state = (ARGV[3] == 'cancelled' and j[4] and j[4] ~= '') and j[4] or ARGV[3]
  publish(ARGV[1], state, ARGV[4], ARGV[5] == '1', tonumber(ARGV[6]))
  return 1
end
if j[2] == ARGV[2] and j[3] == ARGV[4] then return 2 end
redis.call('HINCRBY', P .. 'stats', 'stale_results', 1)
return 0

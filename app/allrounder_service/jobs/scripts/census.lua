#!lua flags=no-writes,allow-oom
-- Counts for the metrics, computed from the queue itself and not from what workers report.
-- ARGV: time in ms without a heartbeat after which a worker is not counted
-- -> {lane, waiting, running}..., oldest ms, lines not ended, workers, dead, stats
local t, lanes, oldest, in_lanes = now(), {}, 0, 0
for _, lane in ipairs(LANES) do
  local key = P .. 'lane:' .. lane
  -- An empty server has no lane until `prepare` creates it.
  local there = redis.call('EXISTS', key) == 1
  local groups = there and redis.call('XINFO', 'GROUPS', key) or {}
  local running, last = 0, '0-0'
  for i = 1, #(groups[1] or {}), 2 do
    if groups[1][i] == 'pending' then running = groups[1][i + 1] end
    if groups[1][i] == 'last-delivered-id' then last = groups[1][i + 1] end
  end
  local length = redis.call('XLEN', key)
  in_lanes = in_lanes + length
  lanes[#lanes + 1] = {lane, length - running, running}
  local next_one = redis.call('XRANGE', key, '(' .. last, '+', 'COUNT', 1)[1]
  if next_one then
    local age = t - number(redis.call('HGET', P .. 'job:' .. next_one[2][2], 'created_ms'))
    if age > oldest then oldest = age end
  end
end
local all = number(redis.call('HGET', P .. 'depth', ':all'))
return {lanes, oldest, all, all - in_lanes,
  redis.call('ZCOUNT', P .. 'workers', t - ARGV[1], '+inf'),
  redis.call('XLEN', P .. 'dead'), redis.call('HGETALL', P .. 'stats')}

#!lua flags=allow-oom
-- Delete the files whose time is over.
-- ARGV: how many at most -> how many there were
local due = redis.call('ZRANGEBYSCORE', P .. 'expiries', '-inf', math.floor(now() / 1000),
  'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do remove_file(id) end
return #due

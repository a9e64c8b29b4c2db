#!lua flags=allow-oom
-- Delete expired files.
-- ARGV: most files to delete -> files deleted
local due = redis.call('ZRANGEBYSCORE', P .. 'expiries', '-inf', math.floor(now() / 1000),
  'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do remove_file(id) end
return #due

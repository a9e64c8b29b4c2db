#!lua flags=allow-oom
-- A worker takes no more lines: another may run what is suspect at once.
-- ARGV: worker
redis.call('ZREM', P .. 'workers', ARGV[1])
if redis.call('GET', P .. 'solo') == ARGV[1] then redis.call('DEL', P .. 'solo') end
return 1

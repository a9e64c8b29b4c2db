#!lua flags=allow-oom
-- Create the consumer groups of the lanes where they are missing, also with Redis full: workers
-- free memory.
-- ARGV: entry id from which a new group reads
for _, lane in ipairs(LANES) do
  local key = P .. 'lane:' .. lane
  if redis.call('EXISTS', key) == 0 or #redis.call('XINFO', 'GROUPS', key) == 0 then
    redis.call('XGROUP', 'CREATE', key, 'g', ARGV[1], 'MKSTREAM')
  end
end
return 1

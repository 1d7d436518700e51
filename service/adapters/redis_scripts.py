"""What runs inside Redis: one script to append, one to read. Each is atomic, and refused as a whole when memory is out.

A subject's events are a sorted set by time. A member is 16 hexadecimal digits of arrival order (so that events of one
moment keep their order), what a history is read for (item, time), a unit separator, and the rest (event id, type,
value, recommendation); both parts are lists in JSON, without their brackets, and JSON never holds a bare separator. An
event id is a key that lives as long as the event, or the deduplication window, whichever ends first. The leading
`#!lua` makes Redis refuse the script before its first write, not half-way through, when `maxmemory` is reached.
"""

# KEYS: sequence counter, then (subject, event id) of each event.
# ARGV: bound of events a subject, a subject's and an id's life in ms, prefix of id keys, then (us, JSON) of each event.
APPEND = """#!lua
local max_events, subject_ms, id_ms = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local id_prefix, added, touched = ARGV[4], {}, {}
for i = 1, (#KEYS - 1) / 2 do
  local subject, id = KEYS[2 * i], KEYS[2 * i + 1]
  if redis.call('SET', id, 1, 'NX', 'PX', id_ms) then
    local seq = redis.call('INCR', KEYS[1])
    redis.call('ZADD', subject, ARGV[2 * i + 3], string.format('%016x', seq) .. ARGV[2 * i + 4])
    touched[subject] = true
    added[i] = 1
  else
    added[i] = 0
  end
end
for subject, _ in pairs(touched) do
  local over = redis.call('ZCARD', subject) - max_events
  if over > 0 then
    local gone = redis.call('ZPOPMIN', subject, over)
    for j = 1, #gone, 2 do
      local rest = string.sub(gone[j], string.find(gone[j], '\\31', 17, true) + 1)
      redis.call('DEL', id_prefix .. cjson.decode('[' .. rest .. ']')[1])
    end
  end
  redis.call('PEXPIRE', subject, subject_ms)
end
return added
"""

# KEYS: subjects. ARGV: for each how many events. Returns for each a JSON array, oldest first: item, time, item, time.
READ = """#!lua flags=no-writes
local answers = {}
for i = 1, #KEYS do
  local members = redis.call('ZRANGE', KEYS[i], -tonumber(ARGV[i]), -1)
  for j = 1, #members do
    members[j] = string.sub(members[j], 17, string.find(members[j], '\\31', 17, true) - 1)
  end
  answers[i] = '[' .. table.concat(members, ',') .. ']'
end
return answers
"""

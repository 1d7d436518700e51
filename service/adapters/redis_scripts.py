"""What runs inside Redis. Each script is atomic, and what adds something is refused as a whole when memory is out.

A subject's events are a sorted set by time. A member is 16 hexadecimal digits of arrival order (so that events of one
moment keep their order), what a history is read for (item, time), a unit separator, and the rest (event id, type,
value, recommendation); both parts are lists in JSON, without their brackets, and JSON never holds a bare separator. An
event id is a key that lives as long as the event, or the deduplication window, whichever ends first. A subject's blocks
are a sorted set of items by time. The leading `#!lua` makes Redis refuse the script before its first write, not
half-way through, when `maxmemory` is reached; what only takes away is allowed then, too.
"""

_EVENT_ID = """
local function event_id(member)
  return cjson.decode('[' .. string.sub(member, string.find(member, '\\31', 17, true) + 1) .. ']')[1]
end
"""

_TRIM = (
    _EVENT_ID
    + """
local function trim(subject, max_events, id_prefix)
  local over = redis.call('ZCARD', subject) - max_events
  if over > 0 then
    local gone = redis.call('ZPOPMIN', subject, over)
    for j = 1, #gone, 2 do redis.call('DEL', id_prefix .. event_id(gone[j])) end
  end
end
"""
)

# KEYS: sequence counter, then (history, blocks, event id) of each event.
# ARGV: bound of events a subject, a subject's and an id's life in ms, prefix of id keys, then (us, JSON) of each event.
APPEND = (
    "#!lua"
    + _TRIM
    + """
local max_events, subject_ms, id_ms = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local id_prefix, added, touched = ARGV[4], {}, {}
for i = 1, (#KEYS - 1) / 3 do
  local subject, id = KEYS[3 * i - 1], KEYS[3 * i + 1]
  if redis.call('SET', id, 1, 'NX', 'PX', id_ms) then
    local seq = redis.call('INCR', KEYS[1])
    redis.call('ZADD', subject, ARGV[2 * i + 3], string.format('%016x', seq) .. ARGV[2 * i + 4])
    touched[subject] = KEYS[3 * i]
    added[i] = 1
  else
    added[i] = 0
  end
end
for subject, blocks in pairs(touched) do
  trim(subject, max_events, id_prefix)
  redis.call('PEXPIRE', subject, subject_ms)
  redis.call('PEXPIRE', blocks, subject_ms)
end
return added
"""
)

# KEYS: sequence counter of the catalogue's changes, then (history, blocks) of each subject. ARGV: for each how many
# events. Returns for each a JSON array, oldest first: item, time, item, time; of who has blocks, that and the blocked
# items. The number of the latest change comes last.
READ = """#!lua flags=no-writes
local answers = {}
for i = 1, (#KEYS - 1) / 2 do
  local members = redis.call('ZRANGE', KEYS[2 * i], -tonumber(ARGV[i]), -1)
  for j = 1, #members do
    members[j] = string.sub(members[j], 17, string.find(members[j], '\\31', 17, true) - 1)
  end
  local history, blocked = '[' .. table.concat(members, ',') .. ']', redis.call('ZRANGE', KEYS[2 * i + 1], 0, -1)
  answers[i] = #blocked == 0 and history or {history, cjson.encode(blocked)}
end
answers[#answers + 1] = redis.call('GET', KEYS[1]) or '0'
return answers
"""

# KEYS: history. ARGV: a place (us, arrival in 16 hexadecimal digits), how many. Returns the members before it.
EVENTS = """#!lua flags=no-writes
local history, us, seq = KEYS[1], ARGV[1], ARGV[2]
local first = redis.call('ZCOUNT', history, '(' .. us, '+inf')
local last = first + redis.call('ZCOUNT', history, us, us)
while first < last do -- of the same moment, those that came earlier
  local middle = math.floor((first + last) / 2)
  if string.sub(redis.call('ZREVRANGE', history, middle, middle)[1], 1, 16) < seq then
    last = middle
  else
    first = middle + 1
  end
end
return redis.call('ZREVRANGE', history, first, first + tonumber(ARGV[3]) - 1)
"""

# KEYS: history, then all other keys of the subject. ARGV: prefix of id keys.
ERASE = (
    "#!lua flags=allow-oom"
    + _EVENT_ID
    + """
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  redis.call('DEL', ARGV[1] .. event_id(member))
end
return {redis.call('DEL', unpack(KEYS))}
"""
)

# KEYS: sequence counter, history and blocks to add to, then all keys of the subject that ends: history, blocks, others.
# ARGV: bound of events and of blocks a subject, a subject's life in ms, prefix of id keys.
# Returns how many events and blocks were moved; nothing when there would be too many blocks.
MERGE = (
    "#!lua"
    + _TRIM
    + """
local new_history, new_blocks, history, blocks = KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local blocked, added = redis.call('ZRANGE', blocks, 0, -1, 'WITHSCORES'), {}
for i = 1, #blocked, 2 do
  if not redis.call('ZSCORE', new_blocks, blocked[i]) then added[#added + 1] = i end
end
if #added > 0 and redis.call('ZCARD', new_blocks) + #added > tonumber(ARGV[2]) then return {} end
local events, known, num_events = redis.call('ZRANGE', history, 0, -1, 'WITHSCORES'), {}, 0
if #events > 0 then
  for _, member in ipairs(redis.call('ZRANGE', new_history, 0, -1)) do known[event_id(member)] = true end
end
for i = 1, #events, 2 do
  if not known[event_id(events[i])] then
    local seq = redis.call('INCR', KEYS[1])
    redis.call('ZADD', new_history, events[i + 1], string.format('%016x', seq) .. string.sub(events[i], 17))
    num_events = num_events + 1
  end
end
for _, i in ipairs(added) do redis.call('ZADD', new_blocks, blocked[i + 1], blocked[i]) end
if redis.call('DEL', unpack(KEYS, 4)) > 0 then
  trim(new_history, tonumber(ARGV[1]), ARGV[4])
  redis.call('PEXPIRE', new_history, ARGV[3])
  redis.call('PEXPIRE', new_blocks, ARGV[3])
end
return {num_events, #added}
"""
)

# KEYS: history, blocks. ARGV: item, us, bound of blocks a subject, a subject's life in ms.
# Returns nothing when there are too many.
BLOCK = """#!lua
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then return {} end
  redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {1}
"""

# KEYS: blocks. ARGV: item.
UNBLOCK = """#!lua flags=allow-oom
return {redis.call('ZREM', KEYS[1], ARGV[1])}
"""

# KEYS: blocks. Returns item, us, item, us.
BLOCKS = """#!lua flags=no-writes
return redis.call('ZREVRANGE', KEYS[1], 0, -1, 'WITHSCORES')
"""

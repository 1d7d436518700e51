"""Changes of the catalogue on Redis, beside the events: a hash for each changed item, and their order.

Keys: `items:seq` and `items:trimmed` (numbers), `items:log` (items by the number of their latest change), `i:<item id>`
(a hash: `kind`, and each field's JSON under `f:<name>`). A patch of a hash is then what a patch of an item is.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from typing import cast

from service.adapters.batcher import Batcher
from service.adapters.redis_client import Answer, Script, connect
from service.recommend.errors import ChangesFull
from service.recommend.items import ChangeKind, ItemChange, ItemRecord, ItemRecords
from service.recommend.types import ItemId

_Call = Callable[[], Awaitable[Answer]]

# KEYS: sequence counter, log, then the hash of each change's item.
# ARGV: bound of items, then for each change: item, kind, number of fields, and for each of them name and JSON.
# Returns each change's number, 0 for a patch of a deleted item; nothing when there would be too many items.
_CHANGE = """#!lua
local log, seen, num_items = KEYS[2], {}, redis.call('ZCARD', KEYS[2])
for i = 3, #KEYS do
  if not seen[KEYS[i]] and redis.call('EXISTS', KEYS[i]) == 0 then num_items = num_items + 1 end
  seen[KEYS[i]] = true
end
if num_items > tonumber(ARGV[1]) then return {} end
local seqs, at = {}, 2
for i = 3, #KEYS do
  local item, kind, num_fields = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local known = redis.call('HGET', KEYS[i], 'kind')
  if kind == 'patch' and known == 'delete' then
    seqs[i - 2] = 0
  else
    local seq = redis.call('INCR', KEYS[1])
    if kind ~= 'patch' then redis.call('DEL', KEYS[i]) end
    if kind ~= 'patch' or not known then redis.call('HSET', KEYS[i], 'kind', kind) end
    for j = at + 3, at + 1 + 2 * num_fields, 2 do
      redis.call('HSET', KEYS[i], 'f:' .. ARGV[j], ARGV[j + 1])
    end
    redis.call('ZADD', log, seq, item)
    seqs[i - 2] = seq
  end
  at = at + 3 + 2 * num_fields
end
return seqs
"""

# KEYS: sequence counter, trimmed, log. ARGV: number, how many items, prefix of the hashes.
# Returns the counter, what is trimmed, the number of items, then for each item: id, number, hash.
_SINCE = """#!lua flags=no-writes
local found = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local answer = {redis.call('GET', KEYS[1]) or '0', redis.call('GET', KEYS[2]) or '0', redis.call('ZCARD', KEYS[3])}
for i = 1, #found, 2 do
  answer[#answer + 1] = {found[i], found[i + 1], redis.call('HGETALL', ARGV[3] .. found[i])}
end
return answer
"""

# KEYS: sequence counter, trimmed, log. ARGV: number, prefix of the hashes. Returns how many items are left, or nothing
# when there was no such number yet.
_TRIM = """#!lua flags=allow-oom
if tonumber(ARGV[1]) > tonumber(redis.call('GET', KEYS[1]) or '0') then return {} end
for _, item in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', ARGV[1])) do
  local key = ARGV[2] .. item
  local hidden = redis.call('HGET', key, 'f:available') == 'false'
  redis.call('DEL', key)
  if hidden then
    redis.call('HSET', key, 'kind', 'patch', 'f:available', 'false')
  else
    redis.call('ZREM', KEYS[3], item)
  end
end
if tonumber(ARGV[1]) > tonumber(redis.call('GET', KEYS[2]) or '0') then redis.call('SET', KEYS[2], ARGV[1]) end
return {redis.call('ZCARD', KEYS[3])}
"""


def changes_seq_key(prefix: str) -> str:
    """Return the key of the number of the latest change, which every history is read with."""
    return f"{prefix}items:seq"


class RedisItems:
    """`ItemChanges` on one Redis server. As durable as the server is, see `RedisStore.durable`."""

    def __init__(
        self,
        url: str,
        *,
        max_items: int,
        read_timeout_s: float,
        write_timeout_s: float,
        max_waiting: int = 10_000,
        prefix: str = "prismrec:",
    ) -> None:
        """Prepare connections; the first call opens them.

        Raises:
            ValueError: The URL is none that redis-py reads.
        """
        self._max_items = max_items
        self._prefix = f"{prefix}i:"
        self._seq = changes_seq_key(prefix)
        self._trimmed, self._log = f"{prefix}items:trimmed", f"{prefix}items:log"
        self._reads = connect(url, timeout_s=read_timeout_s)
        self._writes = connect(url, timeout_s=write_timeout_s)
        self._change_script = Script(self._writes, _CHANGE)
        self._since_script = Script(self._writes, _SINCE)  # as long as a write: there may be much to read
        self._trim_script = Script(self._writes, _TRIM)
        self._seq_script = Script(self._reads, "#!lua flags=no-writes\nreturn {redis.call('GET', KEYS[1]) or '0'}")
        # Each behind a task of its own, so that a caller who leaves never leaves a connection half-way through a reply.
        self._seqs = Batcher[None, int](self._read_seq, max_batch=1_000, max_waiting=max_waiting)
        self._calls = Batcher[_Call, Answer](_run_each, max_batch=1, max_waiting=max_waiting)

    async def change(self, changes: Sequence[ItemChange]) -> tuple[int | None, ...]:
        """Keep the changes; see the port."""
        if not changes:
            return ()
        arguments: list[str | int] = [self._max_items]
        for change in changes:
            arguments += (change.item_id, change.kind, len(change.fields), *chain.from_iterable(change.fields.items()))
        keys = [self._seq, self._log, *(self._prefix + change.item_id for change in changes)]
        seqs = cast("Sequence[int]", await self._calls(lambda: self._change_script(keys, arguments)))
        if not seqs:
            raise ChangesFull(self._max_items)
        return tuple([seq or None for seq in seqs])

    async def changed_since(self, seq: int, *, limit: int) -> ItemRecords:
        """Return the records after `seq`; see the port."""
        keys = [self._seq, self._trimmed, self._log]
        answer = await self._calls(lambda: self._since_script(keys, [seq, limit, self._prefix]))
        last_seq, trimmed_to, num_records, *found = answer
        records = tuple(_record(*cast("tuple[str, str, list[str]]", one)) for one in found)
        return ItemRecords(records, int(cast("str", last_seq)), int(cast("str", trimmed_to)), cast("int", num_records))

    async def changes_seq(self) -> int:
        """Return the number of the latest change."""
        return await self._seqs(None)

    async def trim_changes(self, *, up_to: int) -> int:
        """Forget what is folded in; see the port."""
        keys = [self._seq, self._trimmed, self._log]
        left = await self._calls(lambda: self._trim_script(keys, [up_to, self._prefix]))
        if not left:
            raise ValueError(f"up_to: {up_to} is after the latest change")
        return cast("int", left[0])

    async def close(self) -> None:
        """Finish what was begun and close the connections; idempotent."""
        await self._seqs.close()
        await self._calls.close()
        await self._reads.aclose()
        await self._writes.aclose()

    async def _read_seq(self, jobs: Sequence[None]) -> list[int]:
        (seq,) = await self._seq_script([self._seq], [])
        return [int(cast("str", seq))] * len(jobs)


async def _run_each(calls: Sequence[_Call]) -> list[Answer]:
    return [await call() for call in calls]


def _record(item_id: str, seq: str, flat: list[str]) -> ItemRecord:
    found = dict(zip(flat[::2], flat[1::2], strict=True))
    kind = cast("ChangeKind", found.pop("kind"))
    return ItemRecord(ItemId(item_id), int(float(seq)), kind, {name[2:]: text for name, text in found.items()})

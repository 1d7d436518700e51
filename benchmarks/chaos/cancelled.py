"""A hundred thousand clients that leave half-way: nobody gets another one's answer, and nothing is left open.

Every user has stored one item that no catalogue knows. An answer lists it in `unknown_item_ids`, and so shows whose
history it was made from; its items are the candidates that the request named, and so show whose request it answers.
"""

import asyncio
from collections.abc import Iterator
from random import Random

from benchmarks import load, server
from benchmarks.chaos import grounds
from benchmarks.chaos.callers import Body, Callers, encode_request, failed
from benchmarks.chaos.fault import Fault, Finding, Ground

LEAVERS = 100_000
AT_ONCE = 16
CALLERS = 4


def ask(number: int) -> tuple[str, object]:
    """Ask for a user's own items, in an order that the history decides."""
    body = {"user_id": grounds.user(number), "candidate_item_ids": grounds.own_items(number), "include_seen": True}
    return "/v1/recommendations", body


def mark(number: int) -> str:
    """Return the id of the item that this user alone has, and no catalogue knows."""
    return f"mark-{grounds.user(number)}"


def judge(number: int, answer: Body) -> str | None:
    """Say whose answer it is when it is not this user's."""
    if answer["degraded"]:
        return None  # without a history there is no mark; how many these are is told
    own = set(grounds.own_items(number))
    others = [item["item_id"] for item in answer["items"] if item["item_id"] not in own]
    if others or answer["unknown_item_ids"] != [mark(number)]:
        return f"{grounds.user(number)} was shown {others} of {answer['unknown_item_ids']}"
    return None


def run(ground: Ground) -> Iterator[Finding]:
    """Leave again and again, while others stay and look at what they get."""
    for kind in ("sqlite", "redis"):
        folder = ground.folder / kind
        folder.mkdir()
        versions = grounds.versions(folder)
        with (
            load.events_in(kind, folder) as history,
            server.service(versions.store.root, history=history, workers=ground.workers, log=ground.log) as service,
        ):
            grounds.fill(service)
            grounds.send(
                service,
                [
                    {**grounds.event(number), "event_id": mark(number), "item_id": mark(number)}
                    for number in range(grounds.NUM_USERS)
                ],
            )
            yield from _storm(ground, service, kind)


def _storm(ground: Ground, service: server.Service, kind: str) -> Iterator[Finding]:
    amount = ground.amount(LEAVERS // 2)
    asyncio.run(leave(service.port, AT_ONCE * 4, ground.random))  # opens what stays open: pools, logs
    before = service.num_descriptors()
    with Callers(service.port, ask, connections=CALLERS, judge=judge, pause_s=0.002) as callers:
        asyncio.run(leave(service.port, amount, ground.random))
    degraded = sum(one.degraded for one in callers.answers)
    yield Finding(
        f"{kind}: nobody gets another one's answer",
        "; ".join(callers.complaints[:1])
        or f"0 of {len(callers.answers):,} beside {amount:,} that left; {degraded:,} degraded",
        not callers.complaints and not failed(callers.answers) and degraded < len(callers.answers) // 10,
    )
    # A pool may have opened a few more connections than before, none for each of those that left.
    most = before + 8
    grounds.wait_until(lambda: service.num_descriptors() <= most or service.process.poll() is not None, what="closing")
    after = service.num_descriptors()
    yield Finding(f"{kind}: no descriptor is left open", f"{before} before, {after} after", after <= most)


async def leave(port: int, amount: int, random: Random) -> None:
    """Begin so many requests and finish none, some of them at every stage."""
    left = iter(range(amount))

    async def one_after_another() -> None:
        for number in left:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            request = encode_request(*ask(number))
            stage = random.random()
            try:
                if stage < 0.2:  # in the middle of the request
                    writer.write(request[: random.randrange(1, len(request))])
                    await writer.drain()
                elif stage < 0.4:  # before anything is answered
                    writer.write(request)
                    await writer.drain()
                elif stage < 0.8:  # while it is being answered
                    writer.write(request)
                    await asyncio.sleep(random.uniform(0.0, 0.004))
                else:  # in the middle of the answer
                    writer.write(request)
                    await reader.read(100)
            except ConnectionError:
                pass  # the service has closed it first
            writer.transport.abort()

    await asyncio.gather(*[one_after_another() for _ in range(AT_ONCE)])


FAULT = Fault("cancelled", "Clients leave half-way", run)

"""LibRecommender's libserving, as its guide runs it: Sanic, vectors and past items in Redis, a FAISS index.

It is given our vectors of the users, ready made: it encodes nothing. The wheel holds the folder `libserving`; it needs
none of the libraries that LibRecommender trains with, so it is installed without them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import redis

from benchmarks import prepare, server
from benchmarks.peers.environments import environment, process
from benchmarks.peers.task import NUM_USERS, K, NotStarted, Peer, Running, Task, queries_of

INSTALLS = (
    ("sanic>=22.3", "ujson", "pydantic>=2", "redis>=4.2", f"faiss-cpu=={faiss.__version__}", "numpy"),
    ("--no-deps", "LibRecommender==1.5.2"),
)


@contextmanager
def start(task: Task) -> Iterator[Running]:
    """Fill Redis and the index, and run Sanic with as many workers as the service has.

    Raises:
        NotStarted: The model has several queries a user, which this server has no place for; or it does not run.
    """
    folder = environment("libserving", python="python3.11", installs=INSTALLS)
    home = next(folder.glob("lib/python*/site-packages/libserving"), None)
    if home is None:
        raise NotStarted("the package holds no folder libserving")
    port = server.free_port()
    with server.redis(task.folder / "libserving-redis") as store:
        with task.servable() as servable:
            queries_BQD = queries_of(servable, task.histories)
            if queries_BQD.shape[1] != 1:
                raise NotStarted("it keeps one vector a user, this model makes several")
            index = faiss.IndexFlatIP(queries_BQD.shape[2])
            index.add(task.vectors())
            faiss.write_index(index, str(home / "faiss_index.bin"))
        _fill(store.port, task, queries_BQD[:, 0].tolist())
        command = [folder / "bin/python", "-m", "sanic", "libserving.sanic_serving.embed_deploy:app"]
        command += ["--host", "127.0.0.1", "--port", port, "--no-access-logs", "--workers", task.workers]
        variables = {"REDIS_HOST": f"127.0.0.1:{store.port}"}
        log = task.folder / "libserving.log"
        with process(command, port=port, ready="/", status=404, log=log, variables=variables):
            yield Running(
                port,
                "/embed/recommend",
                [{"user": str(user), "n_rec": K} for user in range(NUM_USERS)],
                lambda answer: next(iter(answer.values())),
            )


def _fill(port: int, task: Task, vectors: list[list[float]]) -> None:
    """Write what its own `embed2redis` writes."""
    client = redis.Redis(port=port)
    client.hset("user2id", mapping={str(user): user for user in range(NUM_USERS)})
    client.hset("user_consumed", mapping={u: json.dumps(rows) for u, rows in enumerate(task.histories.tolist())})
    client.hset("user_embed", mapping={user: json.dumps(vector) for user, vector in enumerate(vectors)})
    for first in range(0, task.num_items, 10_000):
        rows = range(first, min(first + 10_000, task.num_items))
        client.hset("id2item", mapping={row: prepare.item_id(row) for row in rows})
    client.close()


PEER = Peer("libserving", "LibRecommender 1.5.2: Sanic, Redis, FAISS", start)

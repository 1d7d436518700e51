"""A kept answer as text: the same in every store."""

import json

from service.recommend.once import KeptAnswer


def write_answer(answer: KeptAnswer) -> str:
    """Return an answer as JSON."""
    values = [answer.digest, answer.size_bytes, answer.status, answer.headers, answer.body]
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def read_answer(text: str) -> KeptAnswer:
    """Return what `write_answer` wrote."""
    digest, size_bytes, status, headers, body = json.loads(text)
    return KeptAnswer(digest, size_bytes, status, tuple((name, value) for name, value in headers), body)

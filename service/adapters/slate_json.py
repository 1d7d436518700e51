"""What was shown, as text: the same in every store."""

import base64
from collections.abc import Mapping
from datetime import datetime

import numpy as np
from pydantic_core import from_json, to_json

from service.recommend.ports import ShownItem, ShownSlate
from service.recommend.types import Filter, ServedVersion, Vectors

MAX_CHARS = 262_144
"""A slate that takes more is not kept."""


def write_slate(slate: ShownSlate) -> str:
    """Return a slate as JSON."""
    values = {
        "id": slate.recommendation_id,
        "subject": slate.subject,
        "at": slate.served_at,
        "history": slate.history,
        "ages": slate.ages,
        "brought": {item_id: _write_vectors(vectors) for item_id, vectors in slate.brought.items()},
        "items": [tuple(item) for item in slate.items],  # named tuples take six times as long
        "version": _write_version(slate.version),
        "ranker": None if slate.ranker is None else _write_version(slate.ranker),
        "k": slate.k,
        "filter": [
            slate.filter.categories_any,
            slate.filter.categories_all,
            slate.filter.categories_none,
            dict(slate.filter.attributes),
        ],
        "before": slate.shown_before,
    }
    return to_json(values).decode()


def read_slate(text: str) -> ShownSlate:
    """Return what `write_slate` wrote."""
    values = from_json(text)
    any_, all_, none, attributes = values["filter"]
    return ShownSlate(
        recommendation_id=values["id"],
        subject=values["subject"],
        served_at=values["at"],
        history=tuple(values["history"]),
        ages=tuple(values.get("ages", ())),  # slates of an earlier version have none
        brought={item_id: _read_vectors(texts) for item_id, texts in values["brought"].items()},
        items=tuple(ShownItem(*item) for item in values["items"]),
        version=_read_version(values["version"]),
        ranker=None if values["ranker"] is None else _read_version(values["ranker"]),
        k=values["k"],
        filter=Filter(tuple(any_), tuple(all_), tuple(none), {name: tuple(few) for name, few in attributes.items()}),
        shown_before=tuple(values["before"]),
    )


def _write_version(version: ServedVersion) -> list[str]:
    return [version.model_name, version.model_version, version.index_version, version.index_built_at.isoformat()]


def _read_version(values: list[str]) -> ServedVersion:
    model_name, model_version, index_version, built_at = values
    return ServedVersion(model_name, model_version, index_version, datetime.fromisoformat(built_at))


def _write_vectors(vectors: Mapping[str, Vectors]) -> dict[str, str]:
    return {name: base64.b64encode(vector.astype("<f4").tobytes()).decode() for name, vector in vectors.items()}


def _read_vectors(texts: Mapping[str, str]) -> dict[str, Vectors]:
    return {name: np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32) for name, text in texts.items()}

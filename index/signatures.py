"""The graph contract: which tensors a bundle's graphs must have, and whether a loaded graph has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from api_schemas.manifest import BundleManifest, GraphName, GraphSpec
from index.artefacts import ArtefactError

Shape = tuple[int | None, ...]
"""A free dimension is None."""

_DTYPES = {"tensor(float)": "float32", "tensor(bool)": "bool", "tensor(int64)": "int64", "tensor(double)": "float64"}


@dataclass(frozen=True, slots=True)
class Contract:
    """The tensors of one graph, by name."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]


def contract_of(manifest: BundleManifest, graph: GraphName) -> Contract:
    """Return what a graph must read and give for the sizes of its manifest."""
    modalities, num_parts = manifest.modalities, len(manifest.part_names)
    state, length = (num_parts, manifest.state_dim), manifest.history_length
    item = {"candidate": (None, manifest.dim), "history": (None, manifest.history_dim)}
    queries = (None, manifest.num_queries, manifest.width_of_queries)
    ages: dict[str, Shape] = {"ages": (None, length)} if manifest.history_ages else {}
    if graph == "item_encoder":
        raw: dict[str, Shape] = {modality.name: (None, modality.dim) for modality in modalities}
        return Contract({**raw, "presence": (None, len(modalities))}, {**item, "states": (None, *state)})
    if graph == "state_encoder":
        return Contract({"states": (None, *state), "presence": (None, num_parts)}, item)
    if graph == "user_encoder":
        history: dict[str, Shape] = {"history": (None, length, manifest.history_dim), "mask": (None, length)}
        return Contract({**history, **ages}, {"queries": queries})
    if graph == "ranker":
        return Contract({"queries": queries, "candidates": (None, manifest.dim)}, {"scores": (None, None)})
    return Contract(
        {
            "states": (None, length, *state),
            "presence": (None, length, num_parts),
            "mask": (None, length),
            "candidate_states": (None, *state),
            "candidate_presence": (None, num_parts),
            **ages,
        },
        {
            "scores": (None, None),
            "item_interest": (None, None, length),
            "modality_interest": (None, None, length, num_parts),
            "item_grad_x_input": (None, None, length),
            "modality_grad_x_input": (None, None, length, num_parts),
            "contributions": (None, None, num_parts),
            "queries": queries,
        },
    )


def check_signature(path: Path, session: ort.InferenceSession, spec: GraphSpec, *, contract: Contract) -> None:
    """Compare a loaded graph with what its manifest says of it, and with the tensors that it must have.

    Raises:
        ArtefactError: A tensor is missing, or has another name, dtype or shape.
    """
    for side, tensors, said in (
        ("input", session.get_inputs(), spec.inputs),
        ("output", session.get_outputs(), spec.outputs),
    ):
        found = {tensor.name: (_DTYPES.get(tensor.type, tensor.type), tuple(tensor.shape)) for tensor in tensors}
        listed = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in said}
        for name in found.keys() ^ listed.keys():
            where = "the graph" if name in found else "the manifest"
            raise ArtefactError(path, f"{side} {name} is only in {where}")
        for name, (dtype, shape) in found.items():
            said_dtype, said_shape = listed[name]
            if dtype != said_dtype or not _same_shape(shape, said_shape):
                raise ArtefactError(
                    path, f"{side} {name} is {dtype} {list(shape)}, the manifest says {said_dtype} {list(said_shape)}"
                )
    for tensor in spec.inputs:
        if tensor.name not in contract.inputs:
            raise ArtefactError(path, f"input {tensor.name} is none that the manifest asks for")
    for side, said, wanted in (
        ("input", spec.inputs, contract.inputs),
        ("output", spec.outputs, contract.outputs),
    ):
        shapes = {tensor.name: tuple(tensor.shape) for tensor in said}
        for name, expected in wanted.items():
            if name not in shapes:
                raise ArtefactError(path, f"has no {side} {name}")
            if not _same_shape(shapes[name], expected):
                raise ArtefactError(
                    path, f"{side} {name} is {list(shapes[name])}, the manifest's sizes ask for {expected}"
                )


def _same_shape(left: Sequence[int | str | None], right: Sequence[int | str | None]) -> bool:
    """Compare shapes; a dimension that is not a number is free and fits any."""
    return len(left) == len(right) and all(
        one == other or not isinstance(one, int) or not isinstance(other, int)
        for one, other in zip(left, right, strict=True)
    )

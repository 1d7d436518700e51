"""The graph contract: which tensors a bundle's graphs must have, and whether a loaded graph has them.

Legend of shapes: `B` batch, `L` history length, `P` parts of an item, `D` vector width, `H` history width, `S` state
width, `Q` query vectors a user, `K` candidates. A free dimension is None.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime as ort

from api_schemas.manifest import BundleManifest, GraphName, GraphSpec
from index.artefacts import ArtefactError

Shape = tuple[int | None, ...]

_DTYPES = {"tensor(float)": "float32", "tensor(bool)": "bool", "tensor(int64)": "int64", "tensor(double)": "float64"}


def contract_of(manifest: BundleManifest, graph: GraphName) -> dict[str, Shape]:
    """Return the outputs that a graph must have."""
    num_parts, states = len(manifest.part_names), manifest.state_dim
    length = manifest.history_length
    if graph == "item_encoder":
        return {
            "candidate": (None, manifest.dim),
            "history": (None, manifest.history_dim),
            "states": (None, num_parts, states),
        }
    if graph == "state_encoder":
        return {"candidate": (None, manifest.dim), "history": (None, manifest.history_dim)}
    if graph == "user_encoder":
        return {"queries": (None, manifest.num_queries, manifest.dim)}
    return {
        "scores": (None, None),
        "item_interest": (None, None, length),
        "modality_interest": (None, None, length, num_parts),
        "item_grad_x_input": (None, None, length),
        "modality_grad_x_input": (None, None, length, num_parts),
        "contributions": (None, None, num_parts),
        "queries": (None, manifest.num_queries, manifest.dim),
    }


def check_signature(
    path: Path, session: ort.InferenceSession, spec: GraphSpec, *, contract: Mapping[str, Shape]
) -> None:
    """Compare a loaded graph with what its manifest says of it, and with the outputs that it must have.

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
    outputs = {tensor.name: tuple(tensor.shape) for tensor in spec.outputs}
    for name, expected in contract.items():
        if name not in outputs:
            raise ArtefactError(path, f"has no output {name}")
        if not _same_shape(outputs[name], expected):
            raise ArtefactError(
                path, f"output {name} is {list(outputs[name])}, the manifest's sizes ask for {expected}"
            )


def _same_shape(left: Sequence[int | str | None], right: Sequence[int | str | None]) -> bool:
    """Compare shapes; a dimension that is not a number is free and fits any."""
    return len(left) == len(right) and all(
        one == other or not isinstance(one, int) or not isinstance(other, int)
        for one, other in zip(left, right, strict=True)
    )
